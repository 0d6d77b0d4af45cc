"""Read points during a model's own forward pass, and stop it after the last layer that is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import StopForward, body_of, evaluating, never_ran, without_cache, without_labels
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
            for name, place in self.points.places.items():
                point = self.points.canonical(Point(name, index))
                if point in self.wanted and point.layer == index:
                    self._on_exit.enter_context(place.read(layer, partial(self.held.__setitem__, point)))
            self._on_exit.enter_context(layer.register_forward_hook(self._end_of(index)))
        return self

    def __exit__(self, *exc: object) -> None:
        self.held.clear()
        self._on_exit.close()

    def rows_of(self, mask: Tensor, values: Tensor) -> Tensor:
        """Return the value of each row's sequence, -1 for padding; see ``Recorder.rows_of``."""
        return torch.where(mask, values[:, None], -1).flatten()

    def run(self, batch: Mapping[str, Any]) -> None:
        """Run the model without its head up to the last layer that is needed; see ``Recorder.run``."""
        self.held.clear()
        self._ran.clear()
        batch = without_labels(batch)
        self._running = True
        try:
            with torch.no_grad(), self._fast:
                self._body(**batch, **self._options)
        except StopForward:
            pass
        finally:
            self._running = False
            self.held.clear()
        if missing := never_ran(self.model, self._ran, self.last_layer + 1):
            raise UnsupportedModelError(missing)

    def _end_of(self, layer: int) -> Callable[..., None]:
        def on_output(_: nn.Module, __: Any, result: Any) -> None:
            if not self._running:
                return
            self._ran.add(layer)
            with self._fast.suspended():
                self.on_layer(layer, self.held)
            for point in [point for point in self.held if self.wanted[point] <= layer]:
                del self.held[point]
            if layer == self.last_layer:
                raise StopForward

        return on_output
