"""Fit the key-value caches of a decoder to an order of its layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from fastprobe.errors import InputError
from fastprobe.models.forwards import Call


def arrange_caches(calls: Sequence[Call], order: Sequence[int]) -> None:
    """Give each empty cache one slot for every run of a layer, of the kind of that layer (full or sliding).

    Args:
        calls: other arguments of each layer, the caches among them.
        order: layers, first to last.

    Raises:
        InputError: a cache was filled in another order.
    """
    caches = {id(value): value for args, kwargs in calls for value in (*args, *kwargs.values()) if _is_cache(value)}
    for cache in caches.values():
        if getattr(cache, "_fastprobe_order", None) == order:
            continue
        if cache.get_seq_length() > 0:
            raise InputError(
                "past_key_values: this cache was filled with layers in another order; start with a new one"
            )
        if len(cache.layers) == len(calls):
            cache.layers = [copy.deepcopy(cache.layers[layer]) for layer in order]
        cache._fastprobe_order = list(order)


def _is_cache(value: Any) -> bool:
    return hasattr(value, "get_seq_length") and hasattr(value, "layers")
