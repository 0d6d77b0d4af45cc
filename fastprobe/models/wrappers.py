"""Check that what wraps a model, like an adapter, leaves the inputs of the model as they are.

Points and layers are read while the inner model runs. A wrapper that adds something to its inputs, like soft prompts or
key-value prefixes, would go unseen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.batches import select
from fastprobe.data.checks import attended_mask
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import (
    StopForward,
    body_of,
    device_of,
    evaluating,
    first_tensor,
    inputs_of,
    to_device,
    without_cache,
)
from fastprobe.models.copies import two_sequences
from fastprobe.models.identities import TOLERANCE
from fastprobe.models.resolve import ModelPoints


def check_wrapper(model: nn.Module, points: ModelPoints, batch: Mapping[str, Any]) -> None:
    """Raise an error if a model gives the model inside it other inputs than the batch.

    Both run on a longest and a shortest sequence, up to the last layer. Models of Transformers itself hand their inputs
    on, so they do not run.

    Args:
        model: a Hugging Face model.
        points: its resolved points.
        batch: the first one, with one sequence or more.

    Raises:
        UnsupportedModelError: the states of the last layer differ, or the model cannot run the batch.
    """
    body: nn.Module = body_of(model)
    by_transformers = type(model).__module__.startswith("transformers.models.") and "forward" not in vars(model)
    if body is model or (by_transformers and not model._forward_pre_hooks):
        return
    mask = attended_mask(batch)
    few = select(inputs_of(batch), two_sequences(mask) if len(mask) > 1 else torch.zeros(1, dtype=torch.int64))
    few = to_device(few, device_of(model))
    mask = attended_mask(few)
    wrapper, inner = type(model).__name__, type(body).__name__
    with evaluating(model), torch.no_grad():
        expected = _last_state(body, points, {**few, **without_cache(body)})
        try:
            found = _last_state(model, points, few)
        except Exception as error:  # of the model's code, which may raise anything
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise UnsupportedModelError(
                f"{wrapper}: it cannot run the first batch ({reason}), so it is not known whether it changes the "
                f"inputs of the {inner} inside it; pass model.base_model to analyse that one"
            ) from error
    if found.shape != expected.shape:
        change = f"from {tuple(expected.shape)} to {tuple(found.shape)}"
    else:
        if expected.shape[:2] == mask.shape:
            found, expected = found[mask], expected[mask]
        difference = float((found - expected).double().norm() / expected.double().norm())
        if difference <= TOLERANCE.get(expected.dtype, 1e-5) or not expected.isfinite().all():
            return
        change = f"by {difference:.1e} of their norm"
    raise UnsupportedModelError(
        f"{wrapper}: it changes the states of the {inner} inside it {change}, as soft prompts and prefixes do, and "
        "only inputs in the batch are supported; pass model.base_model to analyse the model without them"
    )


def _last_state(module: nn.Module, points: ModelPoints, batch: Mapping[str, Any]) -> Tensor:
    """Run a model up to its last layer and return the output of that layer."""
    found: list[Tensor] = []

    def stop(_: nn.Module, __: Any, result: Any) -> None:
        found.append(first_tensor(result))
        raise StopForward

    with points.layers[-1].register_forward_hook(stop):
        try:
            module(**batch)
        except StopForward:
            return found[0]
    raise RuntimeError("its last layer never ran")
