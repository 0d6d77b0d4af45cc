"""``fastprobe points``."""

from __future__ import annotations

from typing import Any

import typer

import fastprobe as fp
from fastprobe.cli.app import app, dumps, note, stdout
from fastprobe.cli.option_groups import takes
from fastprobe.cli.options import Json
from fastprobe.cli.source import ModelSource
from fastprobe.models.identities import CheckedPoints, check_points
from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.models.table import identities_table

TEXT = "The layers of a transformer pass one state along; each reads it and adds to it."


@app.command()
@takes(ModelSource)
def points(source: ModelSource, json: Json = False) -> None:
    """List where the points of a model were found. Check their identities on a batch."""
    loaded, tokenizer = source.load_model()
    found = resolve(loaded)
    batches = fp.token_batches([TEXT] * 2, tokenizer, max_seq_len=16)  # every model has as many positions
    batch = {key: value.to(loaded.device) for key, value in next(iter(batches)).items()}
    checked = check_points(loaded, found, batch)
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
    places = {
        name: f"{'output' if place.output else 'input'} of {place.module or 'layer'}"
        for name, place in found.places.items()
    }
    columns = ("layer", "equation", "error", "tolerance", "holds")
    rows = [{column: getattr(identity, column) for column in columns} for identity in checked.identities]
    return {"layers": len(found.layers), "layout": found.layout.family, "points": places, "identities": rows}


def _print_places(found: ModelPoints) -> None:
    """Print a line for each point: its module, the point it equals, or the two points whose sum it is."""
    stdout.print(f"{len(found.layers)} layers laid out as in {found.layout.family}", highlight=False)
    for name, place in found.places.items():
        side = "output" if place.output else "input"
        stdout.print(f"  {name:<11} {side} of {place.module or 'the layer'}", highlight=False)
    for name, other in found.aliases.items():
        stdout.print(f"  {name:<11} is {other}", highlight=False)
    for name, (first, second) in found.sums.items():
        stdout.print(f"  {name:<11} is {first} + {second}", highlight=False)
