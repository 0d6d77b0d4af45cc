"""Checks of the batches that a user passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

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


def checked_mask(batch: Mapping[str, Any], number: int) -> Tensor:
    """Return the tokens of a batch that are not padding, ``(batch, length)`` bool.

    Args:
        batch: with ``input_ids`` and ``attention_mask``.
        number: of the batch, for the error message.

    Raises:
        InputError: the batch has no ids or no mask.
    """
    for key in ("input_ids", "attention_mask"):
        if not isinstance(batch.get(key), Tensor) or batch[key].ndim != 2:
            raise InputError(f"batches: batch {number} has no (batch, length) tensor {key!r}")
    return batch["attention_mask"].bool()
