"""``fastprobe points``."""

from __future__ import annotations

from typing import Any

import typer

import fastprobe as fp
from fastprobe.cli.app import app, dumps, note, stdout
from fastprobe.cli.option_groups import takes
from fastprobe.cli.options import Json, StackName
from fastprobe.cli.source import ModelSource
from fastprobe.models.identities import CheckedPoints, check_points
from fastprobe.models.layer_points import LayerPoints
from fastprobe.models.points import ELEMENTS, range_text
from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.models.table import identities_table

TEXT = "The layers of a transformer pass one state along; each reads it and adds to it."


@app.command()
@takes(ModelSource)
def points(source: ModelSource, stack: StackName = None, json: Json = False) -> None:
    """List where the points of a model were found. Check their identities on a batch."""
    loaded, tokenizer = source.load_model()
    found = resolve(loaded, stack)
    batches = fp.token_batches([TEXT] * 2, tokenizer, max_seq_len=16)  # every model has as many positions
    batch = {key: value.to(loaded.device) for key, value in next(iter(batches)).items()}
    checked = check_points(found.part_of(loaded), found, batch)
    if json:
        typer.echo(dumps(_document(found, checked)))
    else:
        _print_places(found)
        stdout.print(identities_table(checked.identities))
    if not all(identity.holds for identity in checked.identities):
        reason = checked.not_finite or "the points of this model are not where they seem"
        note(f"an identity fails: {reason}; a scan would refuse this model")
        raise typer.Exit(1)


def _document(found: ModelPoints, checked: CheckedPoints) -> dict[str, Any]:
    """Return the JSON document: layers, layout, places and identities."""
    layers = [
        {
            "layers": range_text(numbers),
            "form": points.layout.form,
            "points": {name: str(place) for name, place in points.places.items()}
            | dict(points.aliases)
            | {name: " + ".join(pair) for name, pair in points.sums.items()},
            "elements": points.elements,
        }
        for numbers, points in _kinds(found)
    ]
    columns = ("layer", "equation", "error", "tolerance", "holds")
    rows = [{column: getattr(identity, column) for column in columns} for identity in checked.identities]
    return {"layers": len(found.layers), "stack": found.stack, "kinds": layers, "identities": rows}


def _kinds(found: ModelPoints) -> list[tuple[list[int], LayerPoints]]:
    """Return the layers that have the same points, with these points, in the order of the first of them."""
    alike: dict[int, list[int]] = {}
    for layer, points in enumerate(found.found):
        first = next((at for at in alike if found.found[at] == points), layer)
        alike.setdefault(first, []).append(layer)
    return [(numbers, found.found[first]) for first, numbers in alike.items()]


def _print_places(found: ModelPoints) -> None:
    """Print a line for each point: its module, the point it equals, or the two points whose sum it is."""
    others = f"; other stacks: {', '.join(found.others)} (--stack)" if found.others else ""
    stdout.print(f"{len(found.layers)} layers, {found.stack}{others}", highlight=False)
    for numbers, points in _kinds(found):
        stdout.print(f"layers {range_text(numbers)}: {points.layout.form}", highlight=False)
        for name, place in points.places.items():
            stdout.print(f"  {name:<11} {place}", highlight=False)
        for name, other in points.aliases.items():
            stdout.print(f"  {name:<11} is {other}", highlight=False)
        for name, (first, second) in points.sums.items():
            stdout.print(f"  {name:<11} is {first} + {second}", highlight=False)
        if lacking := [name for name in ELEMENTS if name not in points.elements]:
            stdout.print(
                f"  no {', '.join(lacking)}{f' ({r})' if (r := points.layout.reason) else ''}", highlight=False
            )
