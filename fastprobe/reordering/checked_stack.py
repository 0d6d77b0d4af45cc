"""Check that the layers of a model, run one after another, give the model's own output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from fastprobe.data.batches import select
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.calling import without_labels
from fastprobe.models.identities import TOLERANCE, why_not_finite
from fastprobe.models.memoryless import check_memoryless, states_of
from fastprobe.models.protocols import MakeStack
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.runner import stack_for
from fastprobe.models.stack import LayerStack


def check_stack(
    model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], *, edited: bool = False
) -> tuple[MakeStack, str]:
    """Return the constructor of a model's stacks, and a description of it for the configuration.

    The fastest runner is Fastprobe's own encoder. It is used if it gives the model's output on the first two sequences
    of the batch. Otherwise the model's own layers are used, after the same check.

    Args:
        model: in evaluation mode.
        points: the layers and points of the model.
        batch: the first batch of a run.
        edited: some steps are edited layers. These edits need the model's own layers.

    Raises:
        UnsupportedModelError: the layers, run one after another, do not give the model's output, or a layer gives
            another output when it runs again.
        InputError: the batch has no token.
    """
    present = batch["attention_mask"].bool().any(1).nonzero()[:2, 0]
    if not len(present):
        raise InputError("batches: the first one has padding only; leave such batches out")
    few = select(without_labels(batch), present)
    make, reason = (LayerStack.record, "a layer is edited") if edited else stack_for(model, points, few)
    if not reason:
        return make, "encoder"
    stack = LayerStack.record(model, points, few)
    mask = few["attention_mask"].bool()
    states = states_of(stack)
    check_memoryless(stack, states, mask)
    found, expected = stack.head(states[-1])[0], model(**stack.batch)[0]
    error = float((found - expected)[mask].norm() / expected[mask].norm())
    if math.isnan(error):
        raise UnsupportedModelError(f"{type(model).__name__}: {why_not_finite(model)}")
    if not error <= TOLERANCE[expected.dtype]:
        raise UnsupportedModelError(
            f"{type(model).__name__}: its layers, run one after another, differ from the model by {error:.1e} of its "
            "norm; the model does something between its layers that fastprobe does not know"
        )
    return partial(make, checked={}), f"modules of the model ({reason})"
