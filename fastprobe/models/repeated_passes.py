"""Check that passes of a model over the same sequences give the same states.

A scan reads its sample of sequences a second time, in other batches. A model that draws random numbers, that keeps
something between passes, or whose sequences depend on each other would give other rows then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.batches import select
from fastprobe.data.checks import attended_mask
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import StopForward, body_of, evaluating, first_tensor, inputs_of, without_cache
from fastprobe.models.identities import TOLERANCE
from fastprobe.models.memoryless import TOLERANCE as AGAIN
from fastprobe.models.resolve import ModelPoints


@torch.no_grad()
def check_repeated_passes(model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], last: int) -> str:
    """Raise an error if a second pass gives other states, and tell whether sequences depend on each other.

    Args:
        model: a Hugging Face model.
        points: its resolved points.
        batch: one or two sequences, on the device of the model.
        last: the last layer that a scan needs; the passes end there.

    Returns:
        the first layer that gives another output for a sequence alone than for the same one in the batch, as the part
        of a sentence; ``""`` if there is none.

    Raises:
        UnsupportedModelError: a second pass differs; the message names the first layer where it does.
    """
    batch = dict(batch)
    mask = attended_mask(batch)
    with evaluating(model):
        first, again = (_outputs(model, points.layers[: last + 1], batch) for _ in range(2))
        alone = _outputs(model, points.layers[: last + 1], select(batch, torch.tensor([len(mask) - 1])))
    for layer, (one, other) in enumerate(zip(first, again, strict=True)):
        if (error := _difference(other[mask], one[mask])) > AGAIN.get(one.dtype, 1e-6):
            raise UnsupportedModelError(
                f"{type(model).__name__}: layer {layer} gives another output when the same batch runs again (relative "
                f"difference {error:.1e}), so it keeps something between passes or draws random numbers; a scan needs "
                "layers that depend on their input only"
            )
    for layer, (one, other) in enumerate(zip(first, alone, strict=True)):
        if _difference(other[mask[-1:]], one[-1:][mask[-1:]]) > TOLERANCE.get(one.dtype, 1e-5):
            return f"layer {layer} depends on the other sequences of a batch"
    return ""


def _outputs(model: nn.Module, layers: Sequence[nn.Module], batch: Mapping[str, Any]) -> list[Tensor]:
    """Return the outputs of the first layers of a model, in a pass that ends with them."""
    found: list[Tensor] = []
    body = body_of(model)

    def keep(_: nn.Module, __: Any, result: Any) -> None:
        found.append(first_tensor(result).clone())
        if len(found) == len(layers):
            raise StopForward

    with ExitStack() as hooks, suppress(StopForward):
        for layer in layers:
            hooks.callback(layer.register_forward_hook(keep).remove)
        body(**inputs_of(batch), **without_cache(body))
    return found


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the relative Frobenius norm of a difference; 0 if expected is not finite, which other checks report."""
    expected = expected.double()
    if not expected.isfinite().all():
        return 0.0
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))
