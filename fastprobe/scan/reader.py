"""Reading the points of a model: the check that they are right, and the recorder that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastprobe.data.batches import batch_tokens, select
from fastprobe.data.checks import attended_mask
from fastprobe.models.calling import device_of, to_device
from fastprobe.models.identities import check_points
from fastprobe.models.points import Element, Point
from fastprobe.models.protocols import Recorder
from fastprobe.models.repeated_passes import check_repeated_passes
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.runner import recorder_for


@dataclass(frozen=True)
class Reader:
    """The recorder that reads the points of a model, and the width of each point."""

    widths: Mapping[Point, int]
    recorder: type[Recorder]
    runner: str  # for the configuration of a result: what runs the model
    group_tokens: int  # batches with fewer tokens are merged with the next; 0 if padding would cost something
    rebatched: bool = True  # sequences have the same states in other batches

    @classmethod
    def of(cls, model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], elements: Sequence[Element]) -> Reader:
        """Check the identities of the points on two sequences of a batch, and choose the recorder.

        Args:
            model: a Hugging Face model.
            points: its resolved points.
            batch: the first one, with tokens.
            elements: what will be read.

        Raises:
            UnsupportedModelError: an identity fails, or a second pass gives other states.
        """
        device = device_of(model)
        few = first_sequences(batch, device)
        checked = check_points(model, points, few)
        checked.require(type(model).__name__, points.read_by(elements))
        recorder, why_padded = recorder_for(model, points, few)
        if why_padded:
            last = max(element.stop for element in elements) - 1
            if found := check_repeated_passes(model, points, few, last):
                why_padded += f"; {found}, so no sample is read"
            return cls(checked.widths, recorder, f"modules of the model ({why_padded})", 0, not found)
        return cls(checked.widths, recorder, "encoder", batch_tokens(device.type))

    def rows(self, batch_shape: torch.Size) -> int:
        """Return about the rows that one call of the model has, from (sequences, length) of a batch."""
        return batch_shape.numel() if not self.group_tokens else self.group_tokens + batch_shape.numel()


def first_sequences(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return the first two sequences of a batch that have tokens, on the model's device."""
    present = attended_mask(batch).any(1).nonzero()[:2, 0]
    return to_device(select(batch, present), device)
