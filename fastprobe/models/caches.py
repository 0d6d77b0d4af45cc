"""Key-value caches of a decoder whose layers run in another order."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from fastprobe.errors import InputError
from fastprobe.models.calling import Call

_INNER = ("self_attention_cache", "cross_attention_cache")
"""Caches inside that of a decoder which also attends to an encoder."""


def arrange_caches(calls: Sequence[Call], order: Sequence[int]) -> None:
    """Give each empty cache one slot for every run of a layer, of the kind of that layer (full, sliding, recurrent).

    Args:
        calls: other arguments of each layer, the caches among them.
        order: layers that use a cache, first to last.

    Raises:
        InputError: a cache was filled in another order, or is of an unknown structure.
    """
    for cache in caches_of(calls):
        filled_in = getattr(cache, "_fastprobe_order", None)
        if filled_in == list(order):
            continue
        if filled_in is not None or is_filled(cache):
            raise InputError(
                "past_key_values: this cache was filled with layers in another order; start with a new one"
            )
        if len(cache.layers) == len(calls):
            cache.layers = [copy.deepcopy(cache.layers[layer]) for layer in order]
        elif len(cache.layers):
            raise InputError(
                f"past_key_values: a {type(cache).__name__} of {len(cache.layers)} layers does not fit a model of "
                f"{len(calls)}; make it from the model's configuration, or pass use_cache=False"
            )
        cache._fastprobe_order = list(order)


def caches_of(calls: Sequence[Call]) -> list[Any]:
    """Return the caches among the arguments of layers, each once. A cache of caches is given by those inside it.

    Raises:
        InputError: an argument is a cache without a list of layers.
    """
    found: dict[int, Any] = {}
    for args, kwargs in calls:
        for value in (*args, *kwargs.values()):
            found |= {id(cache): cache for cache in _parts(value)} if is_cache(value) else {}
    return list(found.values())


def is_cache(value: Any) -> bool:
    """Return whether an argument of a layer is a cache, by its class."""
    return hasattr(value, "get_seq_length") or type(value).__name__.endswith("Cache")


def is_filled(cache: Any) -> bool:
    """Return whether a layer has put something into a cache."""
    for layer in cache.layers:
        length = getattr(layer, "get_seq_length", lambda: 0)()
        before = getattr(layer, "has_previous_state", None) or {}
        if int(length) > 0 or (any(before.values()) if isinstance(before, dict) else bool(before)):
            return True
    return False


def fresh_caches(call: Call) -> Call:
    """Return the arguments of a layer with a copy of every cache, so that a run of the layer does not change them."""
    args, kwargs = call
    return tuple(map(_copied, args)), {key: _copied(value) for key, value in kwargs.items()}


def _copied(value: Any) -> Any:
    if not is_cache(value):
        return value
    copied = copy.copy(value)  # what a cache has besides its layers, like streams, cannot be copied
    if hasattr(value, _INNER[0]):
        for name in _INNER:
            setattr(copied, name, _copied(getattr(value, name)))
        return copied
    _check(value)
    copied.layers = copy.deepcopy(value.layers)
    return copied


def _parts(cache: Any) -> list[Any]:
    """Return the caches inside a cache; the cache itself if there are none."""
    parts = [getattr(cache, name) for name in _INNER] if hasattr(cache, _INNER[0]) else [cache]
    for part in parts:
        _check(part)
    return parts


def _check(cache: Any) -> None:
    if not isinstance(getattr(cache, "layers", None), list):
        raise InputError(
            f"past_key_values: layers in another order cannot use a {type(cache).__name__}; pass use_cache=False"
        )
