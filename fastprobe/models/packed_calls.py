"""Arguments of layers as a list of different tensors and the rest, so that the tensors can be stored elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slot:
    """Place of a tensor in an argument that was packed."""

    index: int


def packed(value: Any, tensors: list[Tensor]) -> Any:
    """Return an argument with a :class:`Slot` for each tensor, and add the tensors to a list.

    Layers often get the same mask. A tensor that equals one of the list is not added again.

    Args:
        value: an argument of a layer, or a tuple, list or dict of arguments.
        tensors: the tensors so far.
    """
    if isinstance(value, Tensor) and not value.is_nested:
        for index, known in enumerate(tensors):
            if value is known or _equal(value, known):
                return Slot(index)
        tensors.append(value)
        return Slot(len(tensors) - 1)
    if type(value) is dict:
        return {key: packed(inner, tensors) for key, inner in value.items()}
    if type(value) in (tuple, list):
        return type(value)(packed(inner, tensors) for inner in value)
    return value


def unpacked(value: Any, tensors: list[Tensor]) -> Any:
    """Return an argument that :func:`packed` made with its tensors in place."""
    if isinstance(value, Slot):
        return tensors[value.index]
    if type(value) is dict:
        return {key: unpacked(inner, tensors) for key, inner in value.items()}
    if type(value) in (tuple, list):
        return type(value)(unpacked(inner, tensors) for inner in value)
    return value


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
