"""Arguments of layers for several states of one batch: which are repeated, and whether that gives the right states."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from fastprobe.models.identities import TOLERANCE

Apply = Callable[[int, Tensor, int], Tensor]
"""From a layer, ``copies`` states of a batch and ``copies`` to their outputs."""

_CONSTANTS = (bool, int, float, str, Enum, torch.dtype, torch.device, type(None))
"""Types of arguments that are the same for every sequence."""


def repeated(value: Any, batch: int, copies: int) -> Any:
    """Repeat an argument of a layer for ``copies`` states, where it has one entry a sequence.

    Args:
        value: the argument.
        batch: number of sequences of one state.
        copies: number of states.
    """
    if isinstance(value, Tensor):
        return torch.cat([value] * copies) if _is_by_sequence(value, batch) else value
    if type(value) is dict:
        return {key: repeated(inner, batch, copies) for key, inner in value.items()}
    if type(value) is tuple:
        return tuple(repeated(inner, batch, copies) for inner in value)
    return value


def first_sequences(value: Any, batch: int, sequences: int) -> Any:
    """Return an argument of a layer for the first sequences of a batch; the inverse of :func:`repeated`.

    Args:
        value: the argument.
        batch: number of sequences of the batch.
        sequences: number of sequences to keep.
    """
    if isinstance(value, Tensor):
        return value[:sequences] if _is_by_sequence(value, batch) else value
    if type(value) is dict:
        return {key: first_sequences(inner, batch, sequences) for key, inner in value.items()}
    if type(value) is tuple:
        return tuple(first_sequences(inner, batch, sequences) for inner in value)
    return value


def pattern_of(value: Any, batch: int) -> Hashable | None:
    """Return which tensors of an argument are repeated, or ``None`` if it has values that cannot be repeated.

    Args:
        value: an argument of a layer, or a tuple or dict of arguments. Only tensors and constants can be repeated.
        batch: number of sequences of one state.
    """
    if isinstance(value, Tensor):
        return None if value.is_nested else _is_by_sequence(value, batch)
    if type(value) is dict:
        inner = pattern_of(tuple(value.values()), batch)
        return None if inner is None else (tuple(value), inner)
    if type(value) is tuple:
        patterns = tuple(pattern_of(inner, batch) for inner in value)
        return None if None in patterns else patterns
    return type(value).__name__ if isinstance(value, _CONSTANTS) else None


def _is_by_sequence(value: Tensor, batch: int) -> bool:
    """Return whether a tensor has one entry a sequence. Batches of one give no evidence; their tensors broadcast."""
    return value.ndim > 0 and len(value) == batch > 1


def copies_agree(apply: Apply, depth: int, stem: Tensor, mask: Tensor) -> bool:
    """Return whether two states side by side give the outputs that each gives alone, in every layer.

    Args:
        apply: runs a layer.
        depth: number of layers.
        stem: ``(batch, length, width)``, the input of the first layer.
        mask: ``(batch, length)`` bool, false for padding.
    """
    state = stem
    for layer in range(depth):
        other = 1.25 * state.flip(1, 2)  # another mean and scale, too: a layer may use those of the whole batch
        following = apply(layer, state, 1)
        apart = torch.cat([following, apply(layer, other, 1)])
        try:
            together = apply(layer, torch.cat([state, other]), 2)
        except Exception:  # of the model's code, which may raise anything for arguments that do not fit
            return False
        if together.shape != apart.shape or not _close(together, apart, torch.cat([mask, mask])):
            return False
        state = following
    return True


def _close(found: Tensor, expected: Tensor, mask: Tensor) -> bool:
    """Return whether all sequences agree within the tolerance of the dtype."""
    error, size = (
        torch.where(mask[:, :, None], values, 0).double().flatten(1).norm(dim=1)
        for values in (found - expected, expected)
    )
    return bool((error <= TOLERANCE.get(expected.dtype, 1e-5) * size).all())


def two_sequences(mask: Tensor) -> Tensor:
    """Return the indices of a longest and a shortest sequence of a batch, so that the use of a wrong mask shows.

    Args:
        mask: ``(batch, length)`` bool, with two sequences or more.
    """
    lengths = mask.sum(1)
    longest = lengths.argmax()
    lengths[lengths == 0] = mask.shape[1] + 1  # padding only
    lengths[longest] = mask.shape[1] + 2
    return torch.stack([longest, lengths.argmin()])
