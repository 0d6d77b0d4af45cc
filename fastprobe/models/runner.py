"""Select the runner of a model: the unpadded encoder if it reproduces the model, else the model's own modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.checks import attended_mask
from fastprobe.models.calling import evaluating, first_tensor, has_language_head, inputs_of
from fastprobe.models.identities import TOLERANCE
from fastprobe.models.masked_head import MaskedHead
from fastprobe.models.points import Point
from fastprobe.models.protocols import MakeStack, Recorder
from fastprobe.models.recorder import ModuleRecorder
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.stack import LayerStack
from fastprobe.models.unpadded.recorder import UnpaddedRecorder
from fastprobe.models.unpadded.refusals import encoder_refusal
from fastprobe.models.unpadded.stack import UnpaddedStack
from fastprobe.models.unpadded.tokens import UnpaddedTokens

HEAD_TOLERANCE = 1e-4
"""Largest relative Frobenius error of the logits of a float32 head."""


def recorder_for(model: nn.Module, points: ModelPoints, batch: Mapping[str, Any]) -> tuple[type[Recorder], str]:
    """Return the recorder class for a model and the reason why it is not the unpadded one, ``""`` if it is.

    The unpadded encoder is used only if it knows every module of the model and all points agree on this batch.

    Args:
        model: the Hugging Face model.
        points: its resolved points.
        batch: the first sequences of those to run.
    """
    with evaluating(model):
        if reason := encoder_refusal(model, inputs_of(batch)):
            return ModuleRecorder, reason
    tokens = UnpaddedTokens.of(attended_mask(batch))
    wanted = {point: point.layer for point in points.read_points()}
    expected, got = (_read(kind, model, points, wanted, batch) for kind in (ModuleRecorder, UnpaddedRecorder))
    for point, padded in expected.items():
        tensor = tokens.unpad(padded)
        error = float((got[point] - tensor).double().norm() / tensor.double().norm().clamp(min=1e-30))
        if not error <= TOLERANCE[tensor.dtype]:
            return ModuleRecorder, f"at {point} it is off from the model by {error:.1e}"
    return UnpaddedRecorder, ""


def _read(
    kind: type[Recorder],
    model: nn.Module,
    points: ModelPoints,
    wanted: Mapping[Point, int],
    batch: Mapping[str, Any],
) -> dict[Point, Tensor]:
    """Return all wanted points of a batch."""
    kept: dict[Point, Tensor] = {}
    with kind(model, points, wanted, lambda _, held: kept.update(held)) as recorder:
        recorder.run(batch)
    return kept


@torch.no_grad()
def stack_for(model: nn.Module, points: ModelPoints, batch: Mapping[str, Any]) -> tuple[MakeStack, str]:
    """Return the constructor of a model's stacks and the reason why they are not unpadded, ``""`` if they are.

    Args:
        model: the Hugging Face model, in evaluation mode.
        points: its resolved points.
        batch: the first sequences of those to run.
    """
    kind, reason = recorder_for(model, points, batch)
    if kind is not UnpaddedRecorder:
        return LayerStack.record, reason
    if has_language_head(model):
        head = MaskedHead.of(model)
        if head is None:
            return LayerStack.record, f"the head of {type(model).__name__} is not known"
        if reason := _head_refusal(model, points, batch, head):
            return LayerStack.record, reason
    return UnpaddedStack, ""


def _head_refusal(model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], head: MaskedHead) -> str:
    """Return the reason for a refusal if logits of a head differ from the model's, else ``""``."""
    states: list[Tensor] = []
    with points.layers[-1].register_forward_hook(lambda *args: states.append(first_tensor(args[2]))):
        logits = model(**inputs_of(batch)).logits
    mask = attended_mask(batch)
    expected = logits[mask]
    got = nn.functional.linear(head.features(states[0][mask]), head.weight, head.bias)
    error = float((got - expected).norm() / expected.norm())
    if error <= HEAD_TOLERANCE or got.dtype.itemsize < 4:
        return ""
    return f"its head is off from the model's by {error:.1e}"
