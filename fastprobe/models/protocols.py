"""Contracts for runners of models: ``Recorder`` reads points, ``Stack`` runs layers in any order.

Two runners exist. ``ModuleRecorder`` and ``LayerStack`` run the modules of any supported model on padded batches.
``UnpaddedRecorder`` and ``UnpaddedStack`` run encoders of the BERT family on tokens without padding.
``models/runner.py`` selects one of them. Other packages call runners through these contracts.

A runner chooses the shape of its states: ``(batch, length, width)``, or ``(N, width)`` for N tokens without padding. In
both cases ``state.flatten(0, -2)`` is ``(rows, width)``, and methods of the contract map rows to tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

from torch import Tensor, nn

from fastprobe.models.masked_head import MaskedHead
from fastprobe.models.points import Point
from fastprobe.models.resolve import ModelPoints
from fastprobe.orders import Step

OnLayer = Callable[[int, Mapping[Point, Tensor]], None]
"""Receiver of points at the end of a layer: the layer and the points held, of the shape of the runner's states."""


class Recorder(Protocol):
    """Reader of canonical points of a model, one layer after another, inside a ``with`` block.

    Each point is held from the layer that computes it to the last layer that needs it, and no longer.
    """

    def __init__(self, model: nn.Module, points: ModelPoints, wanted: Mapping[Point, int], on_layer: OnLayer):
        """Prepare to read points.

        Args:
            model: a Hugging Face model.
            points: its resolved points.
            wanted: canonical point -> the last layer at whose end it is needed.
            on_layer: called at the end of every layer with the layer and the points held.
        """

    def __enter__(self) -> Self:
        """Put the model in evaluation mode."""

    def __exit__(self, *exc: object) -> None:
        """Restore the mode of the model and remove all hooks."""

    def rows_of(self, batch: Mapping[str, Any], values: Tensor) -> Tensor:
        """Return, for each row of the points, the value of its sequence.

        Args:
            batch: the batch of the rows.
            values: ``(batch,)``, one for each sequence.

        Returns:
            ``(rows,)`` on the device of the batch, -1 where the row is padding or a token that does not count.
        """

    def run(self, batch: Mapping[str, Any]) -> None:
        """Run one forward pass without the head, up to the last layer that is needed. Labels are left out."""


class Stack(Protocol):
    """Layers of a model on one batch, as functions from state to state. They run in any order."""

    model: nn.Module
    points: ModelPoints
    batch: dict[str, Any]
    """Arguments of the model."""

    first: int
    """Number of the batch's first sequence in its stream."""

    step: int
    """Difference between the numbers of two sequences in succession."""

    stem: Tensor
    """State that the first layer receives."""

    masked_head: MaskedHead | None
    """Language-model head, split into features and one product with the vocabulary matrix.

    ``None`` if the runner cannot split it; then :meth:`head` gives the logits.
    """

    def __len__(self) -> int:
        """Return the number of layers."""

    def apply(self, step: Step, state: Tensor, copies: int = 1) -> Tensor:
        """Run one step of an order.

        Args:
            step: a layer, its attention or its FFN, layers in parallel, or an edited layer (``LayerStack`` only).
            state: ``copies`` states of the whole batch, concatenated in the first dimension.
            copies: number of states in ``state``.

        Returns:
            a tensor of the shape of ``state``.
        """

    def head(self, state: Tensor) -> Any:
        """Return the output of the model for final hidden states ``(sequences, length, width)``."""

    def rows(self, state: Tensor, at: Tensor) -> Tensor:
        """Return the rows ``(n, width)`` of a state at some tokens, in the order of the batch.

        Args:
            state: a state of the batch.
            at: ``(batch, length)`` bool, true at n tokens, false at padding.
        """

    def by_row(self, values: Tensor) -> Tensor:
        """Return, for each row of a state, the value of its token: ``(rows,)`` from ``(batch, length)``."""

    def padded(self, state: Tensor) -> Tensor:
        """Return a state as ``(batch, length, width)``. Values at padding are undefined."""


class MakeStack(Protocol):
    """Constructor of a stack: ``LayerStack.record`` or ``UnpaddedStack``."""

    def __call__(self, model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], first: int = 0) -> Stack:
        """Return the stack of a model on one batch.

        Args:
            model: a Hugging Face model in evaluation mode.
            points: its resolved points.
            batch: arguments of the model, on its device.
            first: number of the batch's first sequence in its stream.
        """
