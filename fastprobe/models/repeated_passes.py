"""Check that passes of a model over the same sequences give the same states.

A scan reads its sample of sequences a second time, in other batches. A model that draws random numbers, that keeps
something between passes, or whose sequences depend on each other would give other rows then.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.batches import select
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import body_of, evaluating, first_tensor, without_cache, without_labels
from fastprobe.models.identities import TOLERANCE
from fastprobe.models.memoryless import TOLERANCE as AGAIN
from fastprobe.models.resolve import ModelPoints


@torch.no_grad()
def check_repeated_passes(model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], *, sampled: bool) -> None:
    """Raise an error if a second pass gives other states, or if a sequence alone has other states than in its batch.

    Args:
        model: a Hugging Face model.
        points: its resolved points.
        batch: one or two sequences, on the device of the model.
        sampled: the scan reads a sample of its sequences in other batches.

    Raises:
        UnsupportedModelError: they differ; the message names the first layer where they do.
    """
    batch = without_labels(batch)
    mask = batch["attention_mask"].bool()
    with evaluating(model):
        first, again = _outputs(model, points, batch), _outputs(model, points, batch)
        for layer, (one, other) in enumerate(zip(first, again, strict=True)):
            if (error := _difference(other[mask], one[mask])) > AGAIN.get(one.dtype, 1e-6):
                raise UnsupportedModelError(
                    f"{type(model).__name__}: layer {layer} gives another output when the same batch runs again "
                    f"(relative difference {error:.1e}), so it keeps something between passes or draws random numbers; "
                    "a scan needs layers that depend on their input only"
                )
        if len(mask) < 2 or not sampled:
            return
        alone = _outputs(model, points, select(batch, torch.tensor([len(mask) - 1])))
    for layer, (one, other) in enumerate(zip(first, alone, strict=True)):
        if (error := _difference(other[mask[-1:]], one[-1:][mask[-1:]])) > TOLERANCE.get(one.dtype, 1e-5):
            raise UnsupportedModelError(
                f"{type(model).__name__}: layer {layer} gives another output for a sequence alone than for the same "
                f"one in a batch (relative difference {error:.1e}), so the sample for the cosine columns, which runs "
                "in other batches, has other states; pass score_sequences=0"
            )


def _outputs(model: nn.Module, points: ModelPoints, batch: Mapping[str, Any]) -> list[Tensor]:
    """Return the output of every layer in a pass of the model without its head."""
    found: list[Tensor] = []
    body = body_of(model)
    with ExitStack() as hooks:
        for layer in points.layers:
            handle = layer.register_forward_hook(lambda *call: found.append(first_tensor(call[2]).clone()))
            hooks.callback(handle.remove)
        body(**batch, **without_cache(body))
    return found


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the relative Frobenius norm of a difference; 0 if expected is not finite, which other checks report."""
    expected = expected.double()
    if not expected.isfinite().all():
        return 0.0
    return float((found.double() - expected).norm() / expected.norm().clamp(min=1e-30))
