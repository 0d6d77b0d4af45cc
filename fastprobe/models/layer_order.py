"""Run the layers of a live model in another order.

The model's own loop passes the hidden states through its layers unchanged. At the last layer the arguments of every
layer are known (mask, rotary embeddings, cache); then the layers run in the new order, each with its own arguments.
Modules and weights stay where they are, so gradients flow as usual.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe import orders
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.caches import arrange_caches, caches_of, is_filled
from fastprobe.models.calling import Call, never_ran
from fastprobe.models.executed_states import equal_states, with_executed_states
from fastprobe.models.forwards import intercepted_layers, replaced_forwards
from fastprobe.models.layers_alone import check_layers_alone
from fastprobe.models.reordered import REORDERED
from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.models.stack import LayerStack
from fastprobe.orders import Step, Sublayer


class LayerOrder:
    """Order in which the layers of one model run. A model has at most one; nested blocks change its ``steps``."""

    def __init__(self, model: nn.Module, points: ModelPoints):
        self.model, self.points = model, points
        self.steps: tuple[Step, ...] = tuple(range(len(points.layers)))
        self._mode = "outside"  # of a forward pass; then "passing" states on, "checking" layers, or "running" the order
        self._calls: dict[int, Call] = {}  # arguments of the layers that the model has called so far
        self._stem: Tensor | None = None
        self._passed: Tensor | None = None  # what the last layer that was called has returned
        self._ran: list[int] | None = None  # layers of the last run
        self._slot = 0  # cache slot of the next layer that runs
        self._uses_slot = True  # the current step uses a cache
        self._states: list[Tensor] | None = None  # after every step of the last run, if they are kept
        self._checked = False

    @classmethod
    @contextmanager
    def installed(cls, model: nn.Module) -> Iterator[LayerOrder]:
        """Yield the order of a model, which runs its layers inside the block. Nested blocks share one order."""
        points = resolve(model)
        if outer := REORDERED.get(points.layers[0]):
            yield outer
            return
        if points.carries:
            raise UnsupportedModelError(
                f"{type(model).__name__}: its layers hand on more than the hidden states, so a live model cannot run "
                "them in another order; use commutativity"
            )
        order = REORDERED[points.layers[0]] = cls(model, points)
        forwards: dict[nn.Module, Callable[..., Any]] = {
            module: order._around(module.forward) for module in _parents(model, points)
        }
        try:
            with (
                torch.compiler.set_stance("force_eager"),  # code that is compiled inside the block would outlive it
                replaced_forwards(forwards),
                intercepted_layers(points.layers, order._receive, order._as_is),
            ):
                yield order
        finally:
            del REORDERED[points.layers[0]]

    def _around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return a forward pass around the layers that raises an error if the order does not run in it."""

        @functools.wraps(forward, updated=())
        def around(*args: Any, **kwargs: Any) -> Any:
            outermost = self._mode == "outside"
            if outermost:
                _check_checkpointing(self.model, self.points)
                self._mode, self._calls, self._ran, self._states = "passing", {}, None, None
            if kwargs.get("output_hidden_states") or _keeps_states(self.model):
                self._states = self._states or []
            try:
                out = forward(*args, **kwargs)
                if self._ran is None or self._calls:
                    if outermost:
                        raise self._not_in_turn()
                    return out
                assert self._stem is not None
                return with_executed_states(out, self._stem, self._states)
            finally:
                if outermost:
                    self._mode, self._stem, self._passed, self._states = "outside", None, None, None

        return around

    def _receive(self, layer: int, state: Tensor, call: Call) -> Tensor:
        """Store the arguments of a layer and return its negated input. At the last layer, return that of the order.

        The states that layers return in the pass of the model differ, so that a loop that mixes the output of a layer
        with its input is seen.

        Raises:
            UnsupportedModelError: the model does not call its layers once each, in turn, on one state.
        """
        name = type(self.model).__name__
        if layer in self._calls:
            raise UnsupportedModelError(
                f"{name}: its forward pass called layer {layer} more than once, so its layers cannot be run in another "
                "order"
            )
        if not self._calls:
            self._stem = state
        elif self._passed is None or not equal_states(state, self._passed):
            raise UnsupportedModelError(
                f"{name}: its forward pass changes the hidden states before layer {layer}, so its layers cannot be run "
                "in another order"
            )
        self._calls[layer] = call
        depth = len(self.points.layers)
        if layer < depth - 1:
            self._passed = -state.detach()
            return self._passed
        if [*self._calls] != list(range(depth)):
            raise self._not_in_turn()
        calls = [self._calls[i] for i in range(depth)]
        self._calls = {}
        assert self._stem is not None
        try:
            return self._run(LayerStack(self.model, self.points, {}, self._stem, calls), calls)
        finally:
            self._mode = "passing"

    def _run(self, stack: LayerStack, calls: list[Call]) -> Tensor:
        """Return the final state of the order.

        Raises:
            UnsupportedModelError: other layers ran than the order names, or a layer depends on what ran before.
        """
        if not self._checked and not any(map(is_filled, caches_of(calls))):
            self._mode = "checking"
            check_layers_alone(stack, calls, [step for step in self.steps if isinstance(step, Sublayer)])
            self._checked = True
        wanted = [layer for step in self.steps for layer in orders.layers_of(step)]
        arrange_caches(calls, [layer for step in self.steps if _attends(step) for layer in orders.layers_of(step)])
        self._mode, self._ran, self._slot, state = "running", [], 0, stack.stem
        if self._states is not None:
            self._states = []
        for step in self.steps:
            self._uses_slot = _attends(step)
            state = stack.apply(step, state)
            if self._states is not None:
                self._states.append(state)
        if self._ran != wanted:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: layers ran as {self._ran}, but the order was {wanted}"
            )
        return state

    @contextmanager
    def _as_is(self, layer: int) -> Iterator[bool]:
        """Yield whether a call of a layer is to run the layer. In a run it uses the cache slot of its place."""
        if self._mode != "running":
            yield self._mode != "passing"
            return
        assert self._ran is not None
        self._ran.append(layer)
        modules: list[Any] = [m for m in self.points.layers[layer].modules() if hasattr(m, "layer_idx")]
        indexed = [(module, module.layer_idx) for module in modules]
        try:
            for module, _ in indexed:
                module.layer_idx = self._slot
            self._slot += self._uses_slot
            yield True
        finally:
            for module, index in indexed:
                module.layer_idx = index

    def _not_in_turn(self) -> UnsupportedModelError:
        """Return the error for a forward pass that does not call every layer in turn."""
        called = ", ".join(map(str, self._calls))
        return UnsupportedModelError(
            never_ran(self.model, self._calls, len(self.points.layers))
            or f"{type(self.model).__name__}: its forward pass called its layers in the order {called}, so they cannot "
            "be run in another order"
        )


def places_of(model: nn.Module) -> int:
    """Return the number of places in the current order of a model; without an order, its number of layers."""
    points = resolve(model)
    installed = REORDERED.get(points.layers[0])
    return len(installed.steps) if installed else len(points.layers)


def _parents(model: nn.Module, points: ModelPoints) -> list[nn.Module]:
    """Return the modules that contain the layers and have a forward pass."""
    first = points.layers[0]
    return [
        module
        for module in model.modules()
        if module is not first and not isinstance(module, nn.ModuleList) and any(m is first for m in module.modules())
    ]


def _attends(step: Step) -> bool:
    """Return whether a step uses a cache: all but an FFN alone."""
    return not (isinstance(step, Sublayer) and step.part == "ffn")


def _keeps_states(model: nn.Module) -> bool:
    """Return whether the configuration of a model asks for the hidden states of every layer."""
    return bool(getattr(getattr(model, "config", None), "output_hidden_states", False))


def _check_checkpointing(model: nn.Module, points: ModelPoints) -> None:
    """Raise an error if gradient checkpointing would run the calls of layers again, in which states are passed on.

    Layers of Transformers 5 checkpoint their own ``forward``, which is right. Others are called inside a checkpoint.
    """
    layer = points.layers[0]
    if not layer.training or not torch.is_grad_enabled():
        return
    by_itself = hasattr(layer, "gradient_checkpointing") and type(layer).__call__ is nn.Module.__call__
    if not by_itself and any(getattr(module, "gradient_checkpointing", False) is True for module in model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__}: its gradient checkpointing calls layers again, which would not follow the order; "
            "call model.gradient_checkpointing_disable(), or use Transformers 5"
        )
