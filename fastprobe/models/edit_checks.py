"""Check once a run that edits of layers reach what the layers compute, and change nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastprobe.errors import UnsupportedModelError
from fastprobe.models.edits import Replaced, Reweighted
from fastprobe.models.identities import TOLERANCE
from fastprobe.models.points import ELEMENTS
from fastprobe.models.reweighting import unreached_weight
from fastprobe.models.stack import LayerStack
from fastprobe.orders import Sublayer

WHOLE = ("layer", "attention", "ffn")
"""Elements that start and end where a sub-layer does. They are replaced outside of the layer's own run."""

REMEDY = "ablate the element 'layer', or call the modules of the element once in each run"
"""Advice for a user whose elements cannot be replaced."""


def check_edits(stack: LayerStack, edits: Iterable[Any], states: Sequence[Tensor], mask: Tensor) -> None:
    """Raise an error if an edit does not reach what its layer computes, or changes more than its element.

    * ``Reweighted``: every module of the element that multiplies by a matrix gives the product with the new one.
    * ``Replaced``: the element is computed once in a run of the layer. Its own output in its place changes nothing, and
      another output changes the layer's.

    Other kinds of edits are not known and are not checked.

    Args:
        stack: the model on a few sequences.
        edits: steps of the orders of a run.
        states: of the model's own order: the input of the first layer, then every output.
        mask: ``(batch, length)`` bool, false for padding.

    Raises:
        UnsupportedModelError: an edit does not do what it says.
    """
    intact: dict[tuple[str, int], tuple[str, Tensor]] = {}
    for edit in edits:
        reason = ""
        if isinstance(edit, Reweighted):
            reason = unreached_weight(stack, edit, states[edit.layer])
        elif isinstance(edit, Replaced):
            place = edit.element, edit.layer
            if place not in intact:
                intact[place] = _not_intact(stack, edit, states, mask)
            reason, baseline = intact[place]
            reason = reason or _without_effect(stack, edit, baseline, states, mask)
        if reason:
            raise UnsupportedModelError(
                f"{type(stack.model).__name__}: {edit.element} of layer {edit.layer} cannot be edited: {reason}"
            )


def _not_intact(stack: LayerStack, edit: Replaced, states: Sequence[Tensor], mask: Tensor) -> tuple[str, Tensor]:
    """Replace an element by its own output, and compare the layer with itself.

    Returns:
        the reason if they differ, else ``""``; and the output of the element, that of the layer for whole sub-layers.
    """
    before, after = states[edit.layer], states[edit.layer + 1]
    baseline, found, parts = after, after, ""
    if edit.element in ("attention", "ffn") and stack.points.has_ffn:
        middle = stack.apply(Sublayer("attention", edit.layer), before.clone())
        found = stack.apply(Sublayer("ffn", edit.layer), middle)
        parts = "its attention and its FFN, run one after the other, differ"
    elif edit.element not in WHOLE:
        baseline, reads = _baseline_output(stack, edit, before)
        if reads != (1, 1):
            times = f"{reads[0]} and {reads[1]} times"
            return f"its input and its output are computed {times} in one run of the layer; {REMEDY}", baseline
        found = Replaced(edit.element, edit.layer, "itself", lambda x, stack: baseline).apply(stack, before.clone(), 1)
        parts = "the layer with the element's own output in its place differs"
    error = _difference(found, after, mask)
    if error <= TOLERANCE.get(after.dtype, 1e-5):
        return "", baseline
    return f"{parts} from the layer by {error:.1e} of its norm; {REMEDY}", baseline


def _baseline_output(stack: LayerStack, edit: Replaced, state: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return the output of an element, and how many times its input and its output were computed."""
    points, layer = stack.points, stack.points.layers[edit.layer]
    x, y = map(points.found[edit.layer].place, ELEMENTS[edit.element])
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    with x.read(layer, inputs.append), y.read(layer, outputs.append):
        stack.apply(edit.layer, state.clone())
    return (outputs[-1] if outputs else state), (len(inputs), len(outputs))


def _without_effect(stack: LayerStack, edit: Replaced, baseline: Tensor, states: Sequence[Tensor], mask: Tensor) -> str:
    """Return the reason if another output of an element does not change the layer's, else ``""``.

    An element that ends at the input of a matrix is left out. If the matrix is zero, no input changes the output.
    """
    y = ELEMENTS[edit.element][1]
    if edit.element in WHOLE or not stack.points.found[edit.layer].place(y).output:
        return ""
    given: list[Tensor] = []

    def replacement(x: Tensor, stack: LayerStack) -> Tensor:
        given.append(edit.by(x, stack))
        return given[-1]

    found = Replaced(edit.element, edit.layer, edit.name, replacement).apply(stack, states[edit.layer].clone(), 1)
    same = torch.equal(found[mask], states[edit.layer + 1][mask])
    if same and _difference(given[-1], baseline, mask) > TOLERANCE.get(baseline.dtype, 1e-5):
        return f"its output is replaced, but that of the layer stays the same; {REMEDY}"
    return ""


def _difference(found: Tensor, expected: Tensor, mask: Tensor) -> float:
    """Return the relative Frobenius norm of a difference over the tokens of a batch."""
    expected = expected[mask].double()
    return float((found[mask].double() - expected).norm() / expected.norm().clamp(min=1e-30))
