"""Largest folds that a caller has read already, so that the check of ``gram_`` does not wait for the device again."""

from __future__ import annotations

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_largest: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def remember_largest(fold: Tensor, largest: int) -> None:
    """Remember the largest fold of a tensor until the tensor changes."""
    if not fold.is_inference():  # torch does not count the changes of such a tensor
        _largest[fold] = (fold._version, largest)


def largest_of(fold: Tensor) -> int:
    """Return the largest fold, from memory or from the device."""
    if not fold.is_inference():
        version, largest = _largest.get(fold, (None, 0))
        if version == fold._version:
            return largest
    return int(fold.max())
