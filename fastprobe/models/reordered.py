"""Models whose layers run in another order now."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn

from fastprobe.errors import InputError

REORDERED: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
"""First layer of a model -> its :class:`~fastprobe.models.layer_order.LayerOrder`."""


def check_not_reordered(modules: Iterable[nn.Module]) -> None:
    """Raise an error if one of some modules is the first layer of a model whose layers run in another order.

    Raises:
        InputError: one is.
    """
    if any(module in REORDERED for module in modules):
        raise InputError(
            "model: its layers run in another order now, and points and orders are numbered by the layers of the "
            "model itself; leave the block of permute_layers, and pass its order to commutativity or probe"
        )
