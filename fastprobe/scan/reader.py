"""Reading the points of a model: the check that they are right, and the recorder that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastprobe.data.batches import batch_tokens
from fastprobe.errors import InputError
from fastprobe.models.identities import check_points
from fastprobe.models.points import Point
from fastprobe.models.record import Recorder, device_of
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.unpadded.recorder import FlatRecorder, recorder_for


@dataclass(frozen=True)
class Reader:
    """How the points of a model are read."""

    widths: Mapping[Point, int]
    recorder: type[Recorder] | type[FlatRecorder]
    runner: str  # for the configuration of a result: what runs the model
    group_tokens: int  # batches with fewer tokens are merged with the next; 0 if padding would cost something

    @classmethod
    def of(cls, model: nn.Module, points: ModelPoints, batch: Mapping[str, Any]) -> Reader:
        """Check the identities of the points on two sequences of a batch, and choose the recorder.

        Raises:
            InputError: the batch has no ids or no mask.
            UnsupportedModelError: an identity fails.
        """
        device = device_of(model)
        few = _first_sequences(batch, device)
        checked = check_points(model, points, few)
        checked.require(type(model).__name__)
        recorder, not_flat = recorder_for(model, points, few)
        if not_flat:
            return cls(checked.widths, recorder, f"modules of the model ({not_flat})", 0)
        return cls(checked.widths, recorder, "encoder", batch_tokens(device.type))


def _first_sequences(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the first two sequences of a batch, on the model's device."""
    if "attention_mask" not in batch or "input_ids" not in batch:
        raise InputError(f"batches: need input_ids and attention_mask, got {', '.join(map(str, batch))}")
    for key in ("input_ids", "attention_mask"):
        if not isinstance(batch[key], torch.Tensor):
            raise InputError(f"batches: {key} must be a (batch, length) tensor, got a {type(batch[key]).__name__}")
    return {k: v[:2].to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
