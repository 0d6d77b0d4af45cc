"""Layers of a live model in another order, for the time of a block.

Inside it the model's own loop passes the state through its layers untouched; at the last place, when it is known what
every layer is handed (mask, rotary embeddings, cache), the layers run in the order asked for, each with what is its
own. Modules and weights stay where they are, so gradients flow as usual.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fastprobe import orders
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.models.stack import Call, LayerStack, layer_forwards
from fastprobe.orders import Order, Parallel, Step, Sublayer


class _Reordered:
    """A model whose layers run in an order. One a model at a time; blocks inside one another change its order."""

    def __init__(self, model: nn.Module, points: ModelPoints):
        self.model, self.points = model, points
        self.steps: tuple[Step, ...] = tuple(range(len(points.layers)))
        self._calls: dict[int, Call] = {}
        self._stem: Tensor | None = None
        self._running: list[int] | None = None  # layers that ran so far, while they do

    def pass_on(self, layer: int, state: Tensor, call: Call) -> Tensor:
        """What a layer does when the model's own loop comes to it."""
        if layer == 0:
            self._calls, self._stem = {}, state
        self._calls[layer] = call
        if layer < len(self.points.layers) - 1:
            return state
        if len(self._calls) != len(self.points.layers) or self._stem is None:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: its forward pass came to {len(self._calls)} of its "
                f"{len(self.points.layers)} layers, so they cannot be run in another order"
            )
        calls = [self._calls[i] for i in range(len(self._calls))]
        stack = LayerStack(self.model, self.points, {}, self._stem, calls)
        wanted = [i for step in self.steps for i in orders.layers_of(step)]
        _arrange_caches(calls, wanted)
        self._running, state = [], self._stem
        try:
            for step in self.steps:
                state = stack.apply(step, state)
            if self._running != wanted:
                raise UnsupportedModelError(
                    f"{type(self.model).__name__}: layers ran as {self._running}, asked for were {wanted}"
                )
        finally:
            self._running, self._calls, self._stem = None, {}, None
        return state

    @contextmanager
    def turn(self, layer: int) -> Iterator[bool]:
        """Whether it is a layer's turn to run, with the slot of a cache that is its own in this order."""
        if self._running is None:
            yield False
            return
        slot = len(self._running)
        self._running.append(layer)
        modules: list[Any] = [m for m in self.points.layers[layer].modules() if hasattr(m, "layer_idx")]
        indexed = [(module, module.layer_idx) for module in modules]
        try:
            for module, _ in indexed:
                module.layer_idx = slot
            yield True
        finally:
            for module, own in indexed:
                module.layer_idx = own


_ACTIVE: weakref.WeakKeyDictionary[nn.Module, _Reordered] = weakref.WeakKeyDictionary()


@contextmanager
def permute_layers(model: nn.Module, order: Order | Sequence[Step]) -> Iterator[nn.Module]:
    """The model with its layers in another order; repeats and omissions are allowed.

    Masks, rotary embeddings and sliding windows go with the layer, a cache has a slot for every time a layer runs, and
    all is as before after the block. Inside another such block places count in the order that the outer one made.
    A cache belongs to the order it was filled in. Hidden states that the model returns are those between its own
    places: the first layer's input at each of them.

    Args:
        model: a Hugging Face encoder or decoder.
        order: layers, first to last.

    Raises:
        InputError: the order is empty or names a layer that is not there.
        UnsupportedModelError: the layers cannot be found, or what ran is not what was asked for.

    Example:
        >>> with permute_layers(model, [0, 2, 1, *range(3, 12)]):  # doctest: +SKIP
        ...     model(**batch)
    """
    steps = order.steps if isinstance(order, Order) else tuple(order)
    outer = _ACTIVE.get(model)
    with ExitStack() as stack:
        reordered = outer or stack.enter_context(_reordered(model))
        before = reordered.steps
        orders.check(Order(steps), len(before))
        try:
            reordered.steps = tuple(_composed(before, step) for step in steps)
            yield model
        finally:
            reordered.steps = before


def swap_layers(model: nn.Module, i: int, j: int) -> AbstractContextManager[nn.Module]:
    """:func:`permute_layers` with layers ``i`` and ``j`` interchanged.

    Raises:
        InputError: there is no such layer.
    """
    moved = {i: j, j: i}
    return permute_layers(model, [moved.get(layer, layer) for layer in _places(model, i, j)])


def skip_layers(model: nn.Module, layers: Iterable[int]) -> AbstractContextManager[nn.Module]:
    """:func:`permute_layers` without the layers named.

    Raises:
        InputError: there is no such layer, or none is left.
    """
    out = set(layers)
    return permute_layers(model, [layer for layer in _places(model, *out) if layer not in out])


def repeat_layers(model: nn.Module, start: int, stop: int, times: int = 2) -> AbstractContextManager[nn.Module]:
    """:func:`permute_layers` with layers ``start`` up to, not with, ``stop`` run ``times`` times in turn.

    Raises:
        InputError: there is no such layer, or ``times`` is below 1.
    """
    if times < 1:
        raise InputError(f"times: must be 1 or more, got {times}; skip_layers leaves layers out")
    places = _places(model, start, stop - 1)
    return permute_layers(model, [*places[:start], *places[start:stop] * times, *places[stop:]])


def reverse_layers(model: nn.Module, start: int = 0, stop: int | None = None) -> AbstractContextManager[nn.Module]:
    """:func:`permute_layers` with layers ``start`` up to, not with, ``stop`` run backwards; all by default.

    Raises:
        InputError: there is no such layer.
    """
    places = _places(model, start, *([] if stop is None else [stop - 1]))
    stop = len(places) if stop is None else stop
    return permute_layers(model, [*places[:start], *places[start:stop][::-1], *places[stop:]])


def parallel_layers(model: nn.Module, start: int, stop: int) -> AbstractContextManager[nn.Module]:
    """:func:`permute_layers` with layers ``start`` up to, not with, ``stop`` all run on one state.

    What goes on is the mean of their outputs, as in Sun et al. (2024), "Transformer Layers as Painters".

    Raises:
        InputError: there is no such layer.
    """
    places = _places(model, start, stop - 1)
    return permute_layers(model, [*places[:start], Parallel(tuple(places[start:stop])), *places[stop:]])


@contextmanager
def _reordered(model: nn.Module) -> Iterator[_Reordered]:
    points = resolve(model)
    reordered = _Reordered(model, points)
    _ACTIVE[model] = reordered
    try:
        with layer_forwards(points.layers, reordered.pass_on, reordered.turn):
            yield reordered
    finally:
        del _ACTIVE[model]


def _composed(outer: Sequence[Step], step: Step) -> Step:
    """A step that counts places of an order, as one that names layers."""
    if isinstance(step, int):
        return outer[step]
    places = [outer[layer] for layer in orders.layers_of(step)]
    if not all(isinstance(place, int) for place in places):
        raise InputError(f"order: {step} is inside an order whose places there are no single layers")
    layers = tuple(place for place in places if isinstance(place, int))
    if isinstance(step, Sublayer):
        return Sublayer(step.part, layers[0])
    if isinstance(step, Parallel):
        return Parallel(layers)
    raise InputError(f"order: {step} is an edited layer, which only runs of orders know")


def _places(model: nn.Module, *used: int) -> list[int]:
    active = _ACTIVE.get(model)
    n = len(active.steps) if active else len(resolve(model).layers)
    for layer in used:
        if not 0 <= layer < n:
            raise InputError(f"order: there is no layer {layer}; the model has 0 to {n - 1}")
    return list(range(n))


def _arrange_caches(calls: Sequence[Call], wanted: Sequence[int]) -> None:
    """Give empty caches one slot for every time a layer runs, each of its layer's kind (full or sliding)."""
    caches = {id(value): value for args, kwargs in calls for value in (*args, *kwargs.values()) if _is_cache(value)}
    for cache in caches.values():
        if getattr(cache, "_fastprobe_order", None) == wanted:
            continue
        if cache.get_seq_length() > 0:
            raise InputError(
                "past_key_values: this cache was filled with layers in another order; start with a new one"
            )
        if len(cache.layers) == len(calls):
            cache.layers = [copy.deepcopy(cache.layers[layer]) for layer in wanted]
        cache._fastprobe_order = list(wanted)


def _is_cache(value: Any) -> bool:
    return hasattr(value, "get_seq_length") and hasattr(value, "layers")
