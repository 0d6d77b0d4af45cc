"""Check that the layers of a model, run one after another, give the model's own output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fastprobe.data.batches import select
from fastprobe.data.checks import attended_mask
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import has_language_head, logits_of
from fastprobe.models.edit_checks import check_edits
from fastprobe.models.forwards import final_state
from fastprobe.models.identities import TOLERANCE, why_not_finite
from fastprobe.models.memoryless import check_memoryless, run_backwards, states_of
from fastprobe.models.protocols import MakeStack
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.runner import stack_for
from fastprobe.models.stack import LayerStack
from fastprobe.orders import Edited


def check_stack(
    model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], *, edits: Sequence[Edited] = ()
) -> tuple[MakeStack, str]:
    """Return the constructor of a model's stacks, and a description of it for the configuration.

    The fastest runner is Fastprobe's own encoder. It is used if it gives the model's output on the first two sequences
    of the batch. Otherwise the model's own layers are used. Their check runs the model once and every layer twice on
    the longest sequence of the batch, and both once on two sequences of 16 tokens (benchmarks/NOTES.md).

    Args:
        model: in evaluation mode.
        points: the layers and points of the model.
        batch: the first batch of a run, with tokens.
        edits: the steps that run edited layers. They need the model's own layers.

    Raises:
        UnsupportedModelError: the layers, run one after another, do not give the model's output; or a layer gives
            another output when it runs again; or an edit does not reach what its layer computes.
    """
    present = attended_mask(batch).any(1).nonzero()[:2, 0]
    few = select(batch, present)
    make, reason = (LayerStack.record, "a layer is edited") if edits else stack_for(model, points, few)
    if not reason:
        return make, "encoder"
    longest = attended_mask(batch).sum(1).argmax()[None]
    stack = LayerStack.record(model, points, select(batch, longest))
    mask = attended_mask(stack.batch)
    if stack.stem.ndim != 3 or stack.stem.shape[:2] != mask.shape:
        raise UnsupportedModelError(
            f"{type(model).__name__}: its layers receive states of shape {tuple(stack.stem.shape)} for a batch of "
            f"{tuple(mask.shape)}; orders need one state for each token, (batch, length, width)"
        )
    states = states_of(stack)
    few_stack, few_states = stack, states
    if len(present) > 1:  # masks of several sequences
        short = LayerStack.record_short(model, points, batch)
        few_stack = LayerStack.record(model, points, few) if short is None else short
        few_states = states_of(few_stack)
    else:
        run_backwards(stack, states[-1].clone())
    check_memoryless(stack, states, mask)
    logits = _checked_output(stack, states[-1])
    if few_stack is not stack:
        logits = _checked_output(few_stack, few_states[-1])
    mask = attended_mask(few_stack.batch)
    if logits is not None:
        _check_head(few_stack, few_states[-1][mask], logits[mask], mask.shape[1])
    check_edits(few_stack, edits, few_states, mask)
    return partial(LayerStack.record, checked={}), f"modules of the model ({reason})"


def _checked_output(stack: LayerStack, state: Tensor) -> Tensor | None:
    """Check the final state of a model and its logits against its own forward pass, and return the logits.

    Args:
        stack: the model on a few sequences.
        state: ``(sequences, length, width)``, the output of the last layer.

    Raises:
        UnsupportedModelError: the outputs differ, or are not finite.
    """
    model, mask = stack.model, attended_mask(stack.batch)
    expected, out = final_state(model, stack.points.layers, stack.batch)
    logits = logits_of(stack.head(state)) if has_language_head(model) else None
    for found, right in ((state, expected), *([] if logits is None else [(logits, logits_of(out))])):
        error = float((found - right)[mask].norm() / right[mask].norm())
        if math.isnan(error):
            raise UnsupportedModelError(f"{type(model).__name__}: {why_not_finite(model)}")
        if not error <= TOLERANCE[right.dtype]:
            raise UnsupportedModelError(
                f"{type(model).__name__}: its layers, run one after another, differ from the model by {error:.1e} of "
                "its norm; the model does something between its layers that fastprobe does not know"
            )
    return logits


def _check_head(stack: LayerStack, tokens: Tensor, expected: Tensor, length: int) -> None:
    """Raise an error if logits depend on the place of a token, because only the tokens compared get logits.

    A head that does not accept another number of sequences gets whole batches instead.

    Args:
        stack: the model on a few sequences.
        tokens: ``(tokens, width)``, their final states.
        expected: ``(tokens, vocabulary)``, their logits.
        length: of a sequence.
    """
    moved = F.pad(tokens.flip(0), (0, 0, 0, -len(tokens) % length)).view(-1, length, tokens.shape[1])
    try:
        found = logits_of(stack.head(moved)).flatten(0, 1)[: len(tokens)].flip(0)
    except (RuntimeError, ValueError, IndexError):
        return
    error = float((found - expected).norm() / expected.norm())
    if not error <= TOLERANCE[expected.dtype]:
        raise UnsupportedModelError(
            f"{type(stack.model).__name__}: the logits of a token change by {error:.1e} of their norm when it moves to "
            "another place; orders need a head that works token by token"
        )
