"""Checks of the batches that a user passes, and the masks of their tokens."""

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


TOKEN_MASK = "token_mask"
"""Key of a batch with the tokens that count, ``(batch, length)``. Models do not get it."""


ATTENDED = "attended_mask"
"""Key of a batch with the positions of its states that are not padding, where ``attention_mask`` is not that mask."""
INPUTS = ("input_ids", "pixel_values", "input_values", "input_features")
"""Keys of what a model may read: token ids, images, sound or spectrograms, and spectrograms."""


def attended_mask(batch: Mapping[str, Any]) -> Tensor:
    """Return the tokens of a batch that the model attends to, ``(batch, length)`` bool: all but padding."""
    return batch[ATTENDED if ATTENDED in batch else "attention_mask"].bool()


def content_of(batch: Mapping[str, Any]) -> Tensor:
    """Return what the model reads of a batch, ``(batch, ...)``: token ids, images or sound."""
    return next(batch[key] for key in INPUTS if batch.get(key) is not None)


def counted_mask(batch: Mapping[str, Any]) -> Tensor:
    """Return the tokens of a batch that count in every number, ``(batch, length)`` bool.

    These are the tokens of ``token_mask``, and all but padding in a batch without it.
    """
    counted = batch.get(TOKEN_MASK)
    return attended_mask(batch) if counted is None else counted.bool()


def by_sequence(batch: Mapping[str, Any], values: Tensor) -> Tensor:
    """Return the value of each token's sequence, ``(batch, length)``; -1 at tokens that do not count.

    Args:
        batch: the batch.
        values: ``(batch,)``, one for each sequence.
    """
    counted = counted_mask(batch)
    return torch.where(counted, values.to(counted.device)[:, None], -1)


def check_some_count(tokens: int, sequences: int) -> None:
    """Raise if none of the tokens of all batches counts.

    Args:
        tokens: number of tokens that count.
        sequences: number of sequences.

    Raises:
        InputError: there is no such token.
    """
    if not tokens:
        raise InputError(
            f"batches: no token of their {sequences} sequences counts; let token_mask, skip_first and skip_special "
            "leave some"
        )


def checked_mask(batch: Any, number: int) -> Tensor:
    """Check a batch and return its tokens that are not padding, ``(batch, length)`` bool.

    Args:
        batch: with ``input_ids`` and ``attention_mask``, and perhaps ``token_mask``.
        number: of the batch, for the error message.

    Raises:
        InputError: the batch is no dict; its ids or a mask are missing or of another form; or padding counts.
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
    check_token_mask(batch, mask.bool(), number)
    return mask.bool()


def check_token_mask(batch: Mapping[str, Any], attended: Tensor, number: int) -> None:
    """Raise if the ``token_mask`` of a batch cannot be used.

    Args:
        batch: with or without a ``token_mask``.
        attended: ``(batch, length)`` bool, false for padding.
        number: of the batch, for the error message.

    Raises:
        InputError: the mask has another form, or counts padding.
    """
    counted = batch.get(TOKEN_MASK)
    if counted is None:
        return
    if not isinstance(counted, Tensor) or counted.shape != attended.shape:
        raise InputError(
            f"batches: token_mask of batch {number} must be a tensor of shape {tuple(attended.shape)}, one number a "
            f"token{_seen(batch, TOKEN_MASK)}"
        )
    if counted.dtype != torch.bool and not ((counted == 0) | (counted == 1)).all():
        raise InputError(f"batches: token_mask of batch {number} must be 1 at tokens that count and 0 at all others")
    if padding := int((counted.bool() & ~attended.to(counted.device)).sum()):
        raise InputError(
            f"batches: token_mask of batch {number} counts {padding} tokens of padding; it must be 0 where "
            "attention_mask is 0"
        )


def _seen(batch: Mapping[str, Any], key: str) -> str:
    """Return what a batch has in the place of a tensor, as the end of an error message."""
    if key not in batch:
        return f"; it has {', '.join(map(str, batch)) or 'nothing'}"
    value = batch[key]
    return f"; its shape is {tuple(value.shape)}" if isinstance(value, Tensor) else f"; it is a {type(value).__name__}"
