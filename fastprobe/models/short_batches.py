"""Two sequences of a batch, cut to a few tokens, for checks that need no more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastprobe.data.batches import select
from fastprobe.data.checks import attended_mask
from fastprobe.models.copies import two_sequences

TOKENS = 16
"""Longest sequence of a short batch."""


def short_batch(batch: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a longest and a shortest sequence of a batch, cut to a few tokens.

    They are the first tokens, or the last ones of a batch that is padded on the left. If the batch has padding, half of
    the second sequence is padding at least, so that a missing mask shows.

    Args:
        batch: arguments of a model, with ``attention_mask`` ``(batch, length)``.

    Returns:
        the short batch; ``None`` if the batch has one sequence, is as short, or has no token ids.
    """
    if "input_ids" not in batch:
        return None
    mask = attended_mask(batch)
    count, length = mask.shape
    if count < 2 or (count == 2 and length <= TOKENS):
        return None
    left = not mask[:, 0].all()
    few = select(batch, two_sequences(mask))
    columns = slice(-TOKENS, None) if left else slice(TOKENS)
    few = {
        key: value[:, columns] if isinstance(value, Tensor) and value.shape[:2] == (2, length) else value
        for key, value in few.items()
    }
    if not mask.all():
        kept = few["attention_mask"].clone()
        half = kept.shape[1] // 2
        kept[1, slice(half) if left else slice(-half, None)] = 0
        few["attention_mask"] = kept
    return few if attended_mask(few).any(1).all() else None
