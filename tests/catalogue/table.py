"""Write the table of the catalogue: what was found in every model type of the installed Transformers.

python tests/catalogue/table.py > docs/models.md
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn

import fastprobe as fp
from fastprobe.errors import FastprobeError
from fastprobe.models.identities import check_points
from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.testing.catalogue import NotBuiltError, text_types, toy_model
from tests.catalogue.outcomes import batches_of

LETTERS = {"layer": "l", "attention": "A", "ffn": "F", "attn": "a", "mlp": "m", "attn_heads": "h", "mlp_act": "g"}
"""Elements of the table and their letters."""

HEADER = f"""# Models

Model types of Transformers {transformers.__version__}, each as a random toy model. `make catalogue` writes this page.
Elements: {", ".join(f"{letter} {name}" for name, letter in LETTERS.items())}. An element in brackets is missing in some
layers. Orders: layers run in another order. Generation: `generate` inside `permute_layers`.

"""


class Line(NamedTuple):
    """A row of the table."""

    model_type: str
    stack: str
    elements: str
    orders: str
    generation: str
    reason: str


def line_of(model_type: str) -> Line | None:
    """Return the row of a model type, ``None`` if no toy model of it reads token ids."""
    try:
        model = toy_model(model_type)
    except NotBuiltError:
        return None
    reasons: list[str] = []
    try:
        points = resolve(model)
    except FastprobeError as error:
        return Line(model_type, "", "", "no", "no", _short(error))
    batches = batches_of(model)
    elements = _elements(model, points, batches, reasons)
    orders = _tried(lambda: fp.commutativity(model, batches, _reversed(points), progress=False), reasons)
    generation = _tried(lambda: _generated(model, points), reasons) if model.can_generate() else "–"  # type: ignore[operator]
    reasons += [layout.reason for layout in dict.fromkeys(points.layouts) if layout.reason]
    return Line(model_type, points.stack, elements, orders, generation, "; ".join(dict.fromkeys(reasons)))


def _elements(model: nn.Module, points: ModelPoints, batches: Sequence[Any], reasons: list[str]) -> str:
    """Return the letters of the elements whose identities hold."""
    try:
        checked = check_points(points.part_of(model), points, batches[0])
        checked.require(type(model).__name__)
    except FastprobeError as error:
        reasons.append(_short(error))
        return "l"
    lacking = points.missing(LETTERS, range(len(points.layers)))
    known = [(name, letter) for name, letter in LETTERS.items() if name in points.elements]
    return " ".join(f"({letter})" if name in lacking else letter for name, letter in known)


def _reversed(points: ModelPoints) -> list[list[int]]:
    return [[*reversed(range(len(points.layers)))]]


def _generated(model: Any, points: ModelPoints) -> None:
    batch = {key: value[:, :6] for key, value in batches_of(model)[0].items()}
    with fp.permute_layers(model, _reversed(points)[0]), torch.no_grad():
        model.generate(**batch, max_new_tokens=2, do_sample=False)


def _tried(call: Any, reasons: list[str]) -> str:
    """Return whether a call works; if not, add the reason."""
    try:
        call()
    except FastprobeError as error:
        reasons.append(_short(error))
        return "no"
    except Exception as error:  # of the model's code
        reasons.append(f"generation: {type(error).__name__}")
        return "no"
    return "yes"


def _short(error: Exception) -> str:
    """Return an error without the name of the model, in a few words."""
    said = str(error).partition(": ")[2] or str(error)
    return (said if len(said) <= 110 else said[:107] + "...").replace("|", "/")


def main(types: Sequence[str]) -> None:
    """Print the page."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    lines = []
    for name in types or text_types():
        if (line := line_of(name)) is not None:
            lines.append(line)
            print(*line, sep=" | ", file=sys.stderr, flush=True)
    full = [line for line in lines if line.elements]
    both = [line for line in full if "a" in line.elements.split() and "m" in line.elements.split()]
    ordered = sum(line.orders == "yes" for line in full)
    print(HEADER + f"{len(lines)} types: {len(full)} have a stack of layers, {ordered} run in other orders, and")
    print(f"{len(both)} have attention and FFN in every layer.\n")
    print("| type | stack | elements | orders | generation | what is missing |\n|---|---|---|---|---|---|")
    for line in lines:
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main(sys.argv[1:])
