"""Run one layer at a time of a BERT-family encoder on stored states without padding."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.checks import attended_mask, by_sequence
from fastprobe.models.calling import evaluating, inputs_of
from fastprobe.models.layer_reader import Arguments, RunLayer
from fastprobe.models.points import Point
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.unpadded.encoder import Encoder, WantedPoints
from fastprobe.models.unpadded.tokens import UnpaddedTokens


class UnpaddedLayerReader:
    """Reader that runs the layers of :class:`Encoder`; states are ``(N, width)`` for N tokens without padding.

    The contract is :class:`~fastprobe.models.layer_reader.LayerReader`.

    Args:
        model: a model for which ``fastprobe.models.runner.recorder_for`` selects the unpadded recorder.
        points: its resolved points.
    """

    def __init__(self, model: nn.Module, points: ModelPoints):
        self.model, self.points = model, points

    def __enter__(self) -> UnpaddedLayerReader:
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

    def embedding(self) -> AbstractContextManager[Any]:
        """Do nothing: this runner refuses offloaded weights; see ``LayerReader.embedding``."""
        return nullcontext()

    @torch.no_grad()
    def stem(self, batch: Mapping[str, Any]) -> tuple[Tensor, Arguments]:
        """Run the embeddings; see ``LayerReader.stem``."""
        tokens = UnpaddedTokens.of(attended_mask(batch))
        return self._encoder.stem(inputs_of(batch), tokens), Arguments([], tokens)

    @contextmanager
    def layer(self, index: int) -> Iterator[RunLayer]:
        """Run a layer of the encoder; see ``LayerReader.layer``."""
        layer, before = self._encoder.layers[index], self.points.canonical(Point("resid_pre", index))
        names = {name: self.points.canonical(Point(name, index)) for name in self.points.found[index].places}

        @torch.no_grad()
        def run(state: Tensor, arguments: Arguments, wanted: Collection[Point]) -> tuple[Tensor, dict[Point, Tensor]]:
            read = {name: point for name, point in names.items() if point in wanted and point != before}
            points: WantedPoints = dict.fromkeys(read)
            out = layer(state, arguments.rest, points=points)
            held = {read[name]: tensor for name, tensor in points.items() if tensor is not None}
            return out, {before: state, **held} if before in wanted else held

        yield run
