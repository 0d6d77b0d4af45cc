"""Swap, skip, repeat, reverse or permute the layers of a live model for the time of a block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from torch import nn

from fastprobe import orders
from fastprobe.errors import InputError
from fastprobe.models.layer_order import LayerOrder, places_of
from fastprobe.orders import Order, Parallel, Step, Sublayer
from fastprobe.orders.arguments import integer, integers


@contextmanager
def permute_layers(model: nn.Module, order: Order | Iterable[Step]) -> Iterator[nn.Module]:
    """Run the layers of a model in another order inside the block; repeats and omissions are allowed.

    A layer keeps its mask, rotary embeddings and sliding window wherever it runs. Its hooks see its runs in the order,
    each with what it is given there. A cache has one slot for every run of a layer and belongs to the order in which it
    was filled. The hidden states of ``output_hidden_states=True`` are the input of the first step and the state after
    every step. Attention weights that the model's own loop collects are ``None``. A compiled model runs uncompiled. A
    layer that is called by itself, outside of a forward pass of the model, runs as it is. The first call also runs
    every layer three times on two sequences, to see that no run affects another. On exit the model is as before. In a
    nested block the numbers are places of the outer block's order.

    Args:
        model: a Hugging Face encoder or decoder.
        order: layers, first to last.

    Raises:
        InputError: the order is empty or names a layer that the model does not have.
        UnsupportedModelError: the layers cannot be found. Or, in a forward pass: the model does not call each of its
            layers once, in turn; a layer gives another output when it runs again; or other layers ran than the order
            names.

    Example:
        >>> with permute_layers(model, [0, 2, 1, *range(3, 12)]):  # doctest: +SKIP
        ...     model(**batch)
    """
    steps = Order.of(order).steps
    with LayerOrder.installed(model) as installed:
        before = installed.steps
        orders.check(Order(steps), len(before))
        try:
            installed.steps = tuple(_composed(before, step) for step in steps)
            yield model
        finally:
            installed.steps = before


def swap_layers(model: nn.Module, i: int, j: int) -> AbstractContextManager[nn.Module]:
    """Interchange layers ``i`` and ``j`` inside the block; see :func:`permute_layers`.

    Raises:
        InputError: the model has no such layer.
    """
    i, j = integers((i, j), "swap_layers")
    moved = {i: j, j: i}
    return permute_layers(model, [moved.get(layer, layer) for layer in _places(model, i, j)])


def skip_layers(model: nn.Module, layers: Iterable[int]) -> AbstractContextManager[nn.Module]:
    """Leave layers out inside the block; see :func:`permute_layers`.

    Raises:
        InputError: the model has no such layer, or none is left.
    """
    out = set(integers(layers, "skip_layers"))
    return permute_layers(model, [layer for layer in _places(model, *out) if layer not in out])


def repeat_layers(model: nn.Module, start: int, stop: int, times: int = 2) -> AbstractContextManager[nn.Module]:
    """Run layers ``start`` to ``stop - 1`` in sequence ``times`` times inside the block; see :func:`permute_layers`.

    Raises:
        InputError: the model has no such layer, or ``times`` is below 1.
    """
    start, stop, times = integers((start, stop, times), "repeat_layers")
    if times < 1:
        raise InputError(f"times: must be 1 or more, got {times}; skip_layers leaves layers out")
    places = _places(model, start, stop - 1)
    return permute_layers(model, [*places[:start], *places[start:stop] * times, *places[stop:]])


def reverse_layers(model: nn.Module, start: int = 0, stop: int | None = None) -> AbstractContextManager[nn.Module]:
    """Run layers ``start`` to ``stop - 1``, by default all, in reverse inside the block; see :func:`permute_layers`.

    Raises:
        InputError: the model has no such layer.
    """
    start, stop = integer(start, "reverse_layers"), None if stop is None else integer(stop, "reverse_layers")
    places = _places(model, start, *([] if stop is None else [stop - 1]))
    stop = len(places) if stop is None else stop
    return permute_layers(model, [*places[:start], *places[start:stop][::-1], *places[stop:]])


def parallel_layers(model: nn.Module, start: int, stop: int) -> AbstractContextManager[nn.Module]:
    """Run layers ``start`` to ``stop - 1`` on the same state inside the block; see :func:`permute_layers`.

    The next layer receives the mean of their outputs, as in Sun et al. (2024), "Transformer Layers as Painters".

    Raises:
        InputError: the model has no such layer.
    """
    start, stop = integers((start, stop), "parallel_layers")
    places = _places(model, start, stop - 1)
    return permute_layers(model, [*places[:start], Parallel(tuple(places[start:stop])), *places[stop:]])


def _composed(outer: Sequence[Step], step: Step) -> Step:
    """Return a step whose numbers are places of an outer order as a step whose numbers are layers."""
    if isinstance(step, int):
        return outer[step]
    places = [outer[layer] for layer in orders.layers_of(step)]
    layers = tuple(place for place in places if isinstance(place, int))
    if len(layers) != len(places):
        raise InputError(f"order: {step} must name single layers of the outer block, got {', '.join(map(str, places))}")
    if isinstance(step, Sublayer):
        return Sublayer(step.part, layers[0])
    if isinstance(step, Parallel):
        return Parallel(layers)
    raise InputError(f"order: {step} is an edited layer, which permute_layers cannot run; use commutativity")


def _places(model: nn.Module, *used: int) -> list[int]:
    """Return the places of the current order.

    Raises:
        InputError: one of ``used`` is none of them.
    """
    n = places_of(model)
    for layer in used:
        if not 0 <= layer < n:
            raise InputError(f"order: there is no layer {layer}; the model has 0 to {n - 1}")
    return list(range(n))
