"""Check that layers depend on their arguments only, so that no run of a layer affects another.

Orders share their first layers, and layers run for several orders at a time. A layer that keeps something from its
last run (a growing cache, a recurrent state, counters in buffers), or that reads what another layer keeps (shared keys
and values), would give numbers that depend on what ran before.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastprobe.errors import UnsupportedModelError
from fastprobe.models.protocols import Stack

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Largest relative Frobenius difference of two runs of a layer on one state, by its dtype."""


def states_of(stack: Stack) -> list[Tensor]:
    """Return copies of the states of the model's own order: the input of the first layer, then every output.

    Raises:
        UnsupportedModelError: a layer cannot be run by itself.
    """
    states, state = [stack.stem.clone()], stack.stem
    for layer in range(len(stack)):
        state = _run(stack, layer, state)
        states.append(state.clone())
    return states


def run_backwards(stack: Stack, state: Tensor) -> None:
    """Run the layers last to first, so that what they keep is no longer that of the model's own order."""
    for layer in reversed(range(len(stack))):
        state = _run(stack, layer, state)


def check_memoryless(stack: Stack, states: Sequence[Tensor], mask: Tensor) -> None:
    """Raise an error if a layer gives another output when it runs again, after the layers ran on other states.

    The layers run last to first, so that a layer which reads what an earlier one has kept finds something else than in
    the model's own order.

    Args:
        stack: the model on a few sequences.
        states: of the model's own order, from :func:`states_of`. Since then the layers have run on other states.
        mask: ``(batch, length)`` bool, false for padding.

    Raises:
        UnsupportedModelError: a layer gives another output or writes into its input.
    """
    name = type(stack.model).__name__
    for layer in reversed(range(len(stack))):
        given = states[layer].clone()
        error = _difference(_run(stack, layer, given), states[layer + 1], mask)
        if not error <= TOLERANCE.get(given.dtype, 1e-6):
            raise UnsupportedModelError(
                f"{name}: layer {layer} gives another output for the same state after other layers ran (relative "
                f"difference {error:.1e}), so it keeps or shares something between runs, or draws random numbers; "
                "orders need layers that depend on their input only"
            )
        if not _difference(given, states[layer], mask) == 0:
            raise UnsupportedModelError(
                f"{name}: layer {layer} writes into its input, which orders share; return a new tensor from it"
            )


def _run(stack: Stack, layer: int, state: Tensor) -> Tensor:
    try:
        return stack.apply(layer, state)
    except Exception as error:  # of the model's code, which may raise anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UnsupportedModelError(
            f"{type(stack.model).__name__}: layer {layer} cannot run apart from the model's own pass ({reason}), so "
            "orders of its layers cannot be run"
        ) from error


def _difference(found: Tensor, expected: Tensor, mask: Tensor) -> float:
    """Return the relative Frobenius norm of a difference over the tokens of a batch; 0 if expected is not finite."""
    expected = expected[mask].double()
    if not expected.isfinite().all():
        return 0.0  # the comparison with the model's own output reports this
    return float((found[mask].double() - expected).norm() / expected.norm().clamp(min=1e-30))
