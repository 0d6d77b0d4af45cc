"""Read points of a BERT-family encoder from fastprobe's own runner, and whether it may be trusted with a model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.models.identities import TOLERANCE
from fastprobe.models.points import Point
from fastprobe.models.record import OnLayer, Recorder, evaluating, without_labels
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.unpadded.encoder import Encoder, Points
from fastprobe.models.unpadded.refusals import encoder_refuses
from fastprobe.models.unpadded.tokens import FlatTokens


class FlatRecorder:
    """What :class:`~fastprobe.models.record.Recorder` does, on tokens without padding: points are ``(N, width)``.

    Args:
        model: a model for which :func:`why_not_flat` is ``None``.
        points: where its points are.
        wanted: canonical point -> the last layer at whose end it is still needed.
        on_layer: called at the end of every layer with (layer, the points held).
    """

    def __init__(self, model: nn.Module, points: ModelPoints, wanted: Mapping[Point, int], on_layer: OnLayer):
        self.model, self.points, self.wanted, self.on_layer = model, points, dict(wanted), on_layer
        self.last_layer = max(wanted.values())

    def __enter__(self) -> FlatRecorder:
        self._stack = ExitStack()
        self._stack.enter_context(evaluating(self.model))
        self._encoder = Encoder(self.model, self.points)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
        del self._encoder

    def rows_of(self, mask: Tensor, values: Tensor) -> Tensor:
        """One number a sequence, ``(batch,)``, as one for each row of the points: see ``Recorder.rows_of``."""
        return values[FlatTokens.of(mask).sequence]

    @torch.no_grad()
    def run(self, batch: Mapping[str, Any]) -> None:
        """One pass through the layers, up to the last one that is needed; labels are left out."""
        batch = without_labels(batch)
        held: dict[Point, Tensor] = {}
        flat = FlatTokens.of(batch["attention_mask"].bool())
        state = self._encoder.stem(batch, flat)
        if (first := Point("resid_pre", 0)) in self.wanted:
            held[first] = state
        for index, layer in enumerate(self._encoder.layers[: self.last_layer + 1]):
            names = {name: self.points.canonical(Point(name, index)) for name in self.points.places}
            points: Points = {name: None for name, point in names.items() if point in self.wanted}
            state = layer(state, flat, points=points)
            held |= {names[name]: tensor for name, tensor in points.items() if tensor is not None}
            self.on_layer(index, held)
            for point in [p for p in held if self.wanted[p] <= index]:
                del held[point]


def recorder_for(
    model: nn.Module, points: ModelPoints, batch: Mapping[str, Any]
) -> tuple[type[Recorder] | type[FlatRecorder], str]:
    """How the points of a model are read, and why not from fastprobe's own runner; ``""`` where they are.

    The runner is used only where it knows every module of the model and gives, on this batch, what they give.

    Args:
        model: the Hugging Face model.
        points: where its points are.
        batch: a few sequences of those that are to be run.
    """
    batch = without_labels(batch)
    with evaluating(model):
        if reason := encoder_refuses(model, batch):
            return Recorder, reason
    flat = FlatTokens.of(batch["attention_mask"].bool())
    depth = range(len(points.layers))
    wanted = {points.canonical(Point(name, layer)): layer for name in points.places for layer in depth}
    own, ours = (_read(kind, model, points, wanted, batch) for kind in (Recorder, FlatRecorder))
    for point, tensor in own.items():
        expected, got = flat.flatten(tensor), ours[point]
        error = float((got - expected).double().norm() / expected.double().norm().clamp(min=1e-30))
        if not error <= TOLERANCE[expected.dtype]:
            return Recorder, f"at {point} it is off from the model by {error:.1e}"
    return FlatRecorder, ""


def _read(
    kind: type[Recorder] | type[FlatRecorder],
    model: nn.Module,
    points: ModelPoints,
    wanted: Mapping[Point, int],
    batch: Mapping[str, Any],
) -> dict[Point, Tensor]:
    kept: dict[Point, Tensor] = {}
    with kind(model, points, wanted, lambda _, held: kept.update(held)) as recorder:
        recorder.run(batch)
    return kept
