"""Run the layers of a live model in another order.

The model's own loop passes the hidden states through its layers unchanged. At the last layer the arguments of every
layer are known (mask, rotary embeddings, cache); then the layers run in the new order, each with its own arguments.
Modules and weights stay where they are, so gradients flow as usual.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fastprobe import orders
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.caches import arrange_caches
from fastprobe.models.calling import uncompiled
from fastprobe.models.forwards import Call, intercepted_layers
from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.models.stack import LayerStack
from fastprobe.orders import Step


class LayerOrder:
    """Order in which the layers of one model run. A model has at most one; nested blocks change its ``steps``."""

    def __init__(self, model: nn.Module, points: ModelPoints):
        self.model, self.points = model, points
        self.steps: tuple[Step, ...] = tuple(range(len(points.layers)))
        self._calls: dict[int, Call] = {}
        self._stem: Tensor | None = None
        self._ran: list[int] | None = None  # layers that ran so far; None outside of a run

    @classmethod
    @contextmanager
    def installed(cls, model: nn.Module) -> Iterator[LayerOrder]:
        """Yield the order of a model, which runs its layers inside the block. Nested blocks share one order."""
        if isinstance(model, nn.Module) and (outer := _INSTALLED.get(model)):
            yield outer
            return
        points = resolve(model)
        if points.carries:
            raise UnsupportedModelError(
                f"{type(model).__name__}: its layers hand on more than the hidden states, so a live model cannot run "
                "them in another order; use commutativity"
            )
        order = _INSTALLED[model] = cls(model, points)
        try:
            with uncompiled(model), intercepted_layers(points.layers, order._receive, order._runs_now):
                yield order
        finally:
            del _INSTALLED[model]

    def _receive(self, layer: int, state: Tensor, call: Call) -> Tensor:
        """Store the arguments of a layer and return its input. At the last layer, return the output of the order."""
        if layer == 0:
            self._calls, self._stem = {}, state
        self._calls[layer] = call
        if layer < len(self.points.layers) - 1:
            return state
        if len(self._calls) != len(self.points.layers) or self._stem is None:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: its forward pass called {len(self._calls)} of its "
                f"{len(self.points.layers)} layers, so they cannot be run in another order"
            )
        calls = [self._calls[i] for i in range(len(self._calls))]
        try:
            return self._run(LayerStack(self.model, self.points, {}, self._stem, calls), calls)
        finally:
            self._ran, self._calls, self._stem = None, {}, None

    def _run(self, stack: LayerStack, calls: list[Call]) -> Tensor:
        """Return the final state of the order.

        Raises:
            UnsupportedModelError: other layers ran than the order names.
        """
        wanted = [layer for step in self.steps for layer in orders.layers_of(step)]
        arrange_caches(calls, wanted)
        self._ran, state = [], stack.stem
        for step in self.steps:
            state = stack.apply(step, state)
        if self._ran != wanted:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: layers ran as {self._ran}, but the order was {wanted}"
            )
        return state

    @contextmanager
    def _runs_now(self, layer: int) -> Iterator[bool]:
        """Yield whether a call of a layer belongs to the run. If so, the layer uses the cache slot of its place."""
        if self._ran is None:
            yield False
            return
        slot = len(self._ran)
        self._ran.append(layer)
        modules: list[Any] = [m for m in self.points.layers[layer].modules() if hasattr(m, "layer_idx")]
        indexed = [(module, module.layer_idx) for module in modules]
        try:
            for module, _ in indexed:
                module.layer_idx = slot
            yield True
        finally:
            for module, index in indexed:
                module.layer_idx = index


_INSTALLED: weakref.WeakKeyDictionary[nn.Module, LayerOrder] = weakref.WeakKeyDictionary()


def places_of(model: nn.Module) -> int:
    """Return the number of places in the current order of a model; without an order, its number of layers."""
    installed = _INSTALLED.get(model) if isinstance(model, nn.Module) else None
    return len(installed.steps) if installed else len(resolve(model).layers)


def is_reordered(model: nn.Module) -> bool:
    """Return whether a model runs its layers in an order now. Then its layers run in one forward pass only."""
    return model in _INSTALLED
