"""Checks of the batches that a user passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastprobe.errors import InputError


def check_repeatable(batches: Iterable[Any], reason: str) -> None:
    """Raise an error if batches can be read only once.

    Args:
        batches: the argument of the user.
        reason: why they are read more often; a clause like "a probe reads them twice".

    Raises:
        InputError: the batches are an iterator.
    """
    if isinstance(batches, Iterator):
        raise InputError(
            f"batches: {reason}, and a {type(batches).__name__} can be read only once; "
            "pass a list, a DataLoader or token_batches(...)"
        )


def checked_mask(batch: Any, number: int) -> Tensor:
    """Return the tokens of a batch that are not padding, ``(batch, length)`` bool.

    Args:
        batch: with ``input_ids`` and ``attention_mask``.
        number: of the batch, for the error message.

    Raises:
        InputError: the batch is no dict, or its ids or mask are missing or of another form.
    """
    if not isinstance(batch, Mapping):
        raise InputError(f"batches: batch {number} must be a dict of tensors, got a {type(batch).__name__}")
    for key in ("input_ids", "attention_mask"):
        value = batch.get(key)
        if not isinstance(value, Tensor) or value.ndim != 2:
            raise InputError(f"batches: batch {number} has no (batch, length) tensor {key!r}{_seen(batch, key)}")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if mask.shape != ids.shape:
        raise InputError(f"batches: attention_mask and input_ids of batch {number} differ in shape")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputError(f"batches: input_ids of batch {number} must be integers, got {ids.dtype}")
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise InputError(f"batches: attention_mask of batch {number} must be 1 at tokens and 0 at padding")
    return mask.bool()


def _seen(batch: Mapping[str, Any], key: str) -> str:
    """Return what a batch has in the place of a tensor, as the end of an error message."""
    if key not in batch:
        return f"; it has {', '.join(map(str, batch)) or 'nothing'}"
    value = batch[key]
    return f"; its shape is {tuple(value.shape)}" if isinstance(value, Tensor) else f"; it is a {type(value).__name__}"
