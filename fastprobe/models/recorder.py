"""Read points during a model's own forward pass, and stop it after the last layer that is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.checks import attended_mask, by_sequence
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import (
    StopForward,
    body_of,
    evaluating,
    inputs_of,
    named_errors,
    never_ran,
    without_cache,
)
from fastprobe.models.points import Point
from fastprobe.models.protocols import OnLayer
from fastprobe.models.resolve import ModelPoints
from fastprobe.ops.products import FastLinear


class ModuleRecorder:
    """Recorder that reads canonical points by hooks on the modules of any supported model.

    The contract is :class:`~fastprobe.models.protocols.Recorder`. Points are ``(batch, length, width)``, so the rows
    of a point are ``batch * length`` and those of padding are among them. Inside the ``with`` block the model is in
    evaluation mode and has hooks; both are undone on exit.

    Args:
        model: a Hugging Face model.
        points: its resolved points.
        wanted: canonical point -> the last layer at whose end it is needed.
        on_layer: called at the end of every layer with the layer and the points held.
    """

    def __init__(self, model: nn.Module, points: ModelPoints, wanted: Mapping[Point, int], on_layer: OnLayer):
        self.model, self.points, self.wanted, self.on_layer = model, points, dict(wanted), on_layer
        self.last_layer = max(wanted.values())
        self.held: dict[Point, Tensor] = {}
        self._ran: set[int] = set()
        self._running = False  # other passes of the model, like a check of padding, are not read
        self._body = body_of(model)
        self._options = without_cache(self._body)
        self._fast = FastLinear()

    def __enter__(self) -> ModuleRecorder:
        self._on_exit = ExitStack()
        self._on_exit.enter_context(evaluating(self.model))
        for index, layer in enumerate(self.points.layers[: self.last_layer + 1]):
            for name, place in self.points.found[index].places.items():
                point = self.points.canonical(Point(name, index))
                if point in self.wanted and point.layer == index:
                    self._on_exit.enter_context(place.read(layer, partial(self._hold, point)))
            self._on_exit.enter_context(layer.register_forward_hook(self._end_of(index)))
        return self

    def __exit__(self, *exc: object) -> None:
        self.held.clear()
        self._on_exit.close()

    def rows_of(self, batch: Mapping[str, Any], values: Tensor) -> Tensor:
        """Return the value of each row's sequence, -1 for rows that do not count; see ``Recorder.rows_of``."""
        return by_sequence(batch, values).flatten()

    def run(self, batch: Mapping[str, Any]) -> None:
        """Run the model without its head up to the last layer that is needed; see ``Recorder.run``."""
        self.held.clear()
        self._ran.clear()
        self._running = True
        self._shape = attended_mask(batch).shape
        try:
            with named_errors(self.model), torch.no_grad(), self._fast:
                self._body(**inputs_of(batch), **self._options)
        except StopForward:
            pass
        finally:
            self._running = False
            self.held.clear()
        if missing := never_ran(self.model, self._ran, self.last_layer + 1):
            raise UnsupportedModelError(missing)

    def _hold(self, point: Point, tensor: Tensor) -> None:
        """Keep a point, as ``(batch, length, width)`` also where its module works on rows."""
        self.held[point] = by_token(tensor, self._shape)

    def _end_of(self, layer: int) -> Callable[..., None]:
        def on_output(_: nn.Module, __: Any, result: Any) -> None:
            if not self._running:
                return
            self._ran.add(layer)
            check_shapes(self.model, self.held, self._shape)
            with self._fast.suspended():
                self.on_layer(layer, self.held)
            for point in [point for point in self.held if self.wanted[point] <= layer]:
                del self.held[point]
            if layer == self.last_layer:
                raise StopForward

        return on_output


def by_token(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Return the rows of a point as ``(batch, length, width)`` if they are ``(batch * length, width)``.

    Args:
        tensor: as the module has it.
        shape: (batch, length).
    """
    if tensor.shape[:-1] != shape and tensor.shape[:-1] == (shape.numel(),):
        return tensor.view(*shape, tensor.shape[-1])
    return tensor


def check_shapes(model: nn.Module, held: Mapping[Point, Tensor], shape: torch.Size) -> None:
    """Raise an error if a point does not have one row for each token.

    Args:
        model: the model, for the error message.
        held: the points that are read at the end of a layer.
        shape: (batch, length).

    Raises:
        UnsupportedModelError: a tensor has another number of rows.
    """
    for point, tensor in held.items():
        if tensor.shape[:-1] != shape:
            raise UnsupportedModelError(
                f"{type(model).__name__}: {point} has the shape {tuple(tensor.shape)} for a batch of {tuple(shape)}; "
                "points need one row for each token. A model that pads its input itself takes batches whose length "
                "needs no padding"
            )
