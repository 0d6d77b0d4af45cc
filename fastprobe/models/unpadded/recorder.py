"""Read the points of a BERT-family encoder on tokens without padding."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.checks import attended_mask, by_sequence
from fastprobe.models.calling import evaluating, inputs_of
from fastprobe.models.points import Point
from fastprobe.models.protocols import OnLayer
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.unpadded.encoder import Encoder, WantedPoints
from fastprobe.models.unpadded.tokens import UnpaddedTokens


class UnpaddedRecorder:
    """Recorder that runs :class:`Encoder`; points are ``(N, width)`` for N tokens without padding.

    The contract is :class:`~fastprobe.models.protocols.Recorder`.

    Args:
        model: a model for which ``fastprobe.models.runner.recorder_for`` selects this class.
        points: its resolved points.
        wanted: canonical point -> the last layer at whose end it is needed.
        on_layer: called at the end of every layer with the layer and the points held.
    """

    def __init__(self, model: nn.Module, points: ModelPoints, wanted: Mapping[Point, int], on_layer: OnLayer):
        self.model, self.points, self.wanted, self.on_layer = model, points, dict(wanted), on_layer
        self.last_layer = max(wanted.values())

    def __enter__(self) -> UnpaddedRecorder:
        self._on_exit = ExitStack()
        self._on_exit.enter_context(evaluating(self.model))
        self._encoder = Encoder(self.model, self.points)
        return self

    def __exit__(self, *exc: object) -> None:
        self._on_exit.close()
        del self._encoder

    def rows_of(self, batch: Mapping[str, Any], values: Tensor) -> Tensor:
        """Return the value of each token's sequence, ``(N,)``; see ``Recorder.rows_of``."""
        return UnpaddedTokens.of(attended_mask(batch)).unpad(by_sequence(batch, values))

    @torch.no_grad()
    def run(self, batch: Mapping[str, Any]) -> None:
        """Run the encoder up to the last layer that is needed; see ``Recorder.run``."""
        held: dict[Point, Tensor] = {}
        tokens = UnpaddedTokens.of(attended_mask(batch))
        state = self._encoder.stem(inputs_of(batch), tokens)
        if (first := Point("resid_pre", 0)) in self.wanted:
            held[first] = state
        for index, layer in enumerate(self._encoder.layers[: self.last_layer + 1]):
            names = {name: self.points.canonical(Point(name, index)) for name in self.points.found[index].places}
            points: WantedPoints = {name: None for name, point in names.items() if point in self.wanted}
            state = layer(state, tokens, points=points)
            held |= {names[name]: tensor for name, tensor in points.items() if tensor is not None}
            self.on_layer(index, held)
            for point in [point for point in held if self.wanted[point] <= index]:
                del held[point]
