"""Batches put together: where padding costs nothing, a few passes of many tokens are faster than many of a few."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Batch = Mapping[str, Any]

BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
"""By the type of the device: on a CPU few enough that activations come from memory that is in use already
(benchmarks/NOTES.md), elsewhere enough to keep a GPU busy."""


def batch_tokens(device: str) -> int:
    """Tokens of a batch that are neither too few to be fast on a type of device nor more than help."""
    return BATCH_TOKENS.get(device, BATCH_TOKENS["cuda"])


def grouped(batches: Iterable[Batch], tokens: int) -> Iterator[list[Batch]]:
    """Batches that follow each other, in lists that can be merged.

    Args:
        batches: what a model is called with.
        tokens: a list with as many, padding not counted, is complete.

    Yields:
        lists of batches of the same tensors; one that has anything but ``(batch, length)`` tensors is by itself.
    """
    group: list[Batch] = []
    have = 0
    for batch in batches:
        if group and _kind(batch) != _kind(group[0]):
            yield group
            group, have = [], 0
        group.append(batch)
        if _kind(batch) is None or (have := have + int(batch["attention_mask"].sum())) >= tokens:
            yield group
            group, have = [], 0
    if group:
        yield group


def merged(batches: Sequence[Batch]) -> dict[str, Any]:
    """The sequences of all batches of a list of :func:`grouped` as one batch, padded with zeros at their ends."""
    if len(batches) == 1:
        return dict(batches[0])
    length = max(batch["input_ids"].shape[1] for batch in batches)
    return {
        key: torch.cat([F.pad(batch[key], (0, length - batch[key].shape[1])) for batch in batches])
        for key in batches[0]
    }


def picked(batch: Batch, sequences: Tensor) -> dict[str, Any]:
    """Some sequences of a batch, by number. A tensor of one row, as ``position_ids`` may be, is for all of them."""
    count = batch["input_ids"].shape[:1]
    return {
        key: value[sequences.to(value.device)] if isinstance(value, Tensor) and value.shape[:1] == count else value
        for key, value in batch.items()
    }


def _kind(batch: Batch) -> dict[str, torch.dtype] | None:
    """The tensors of a batch by name; ``None`` for a batch that cannot be merged with another."""
    values = [batch.get("input_ids"), batch.get("attention_mask"), *batch.values()]
    if not all(isinstance(value, Tensor) and value.ndim == 2 for value in values):
        return None
    same = all(value.shape == batch["input_ids"].shape for value in values)
    return {key: value.dtype for key, value in batch.items()} if same else None
