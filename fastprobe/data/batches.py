"""Batches of sequences: group, merge and select them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.data.checks import attended_mask

Batch = Mapping[str, Any]

BATCH_TOKENS = {"cpu": 4096, "cuda": 32_768}
"""Tokens of one call of a model, by type of device.

On a CPU the activations of so few tokens reuse memory that the process holds already (benchmarks/NOTES.md). On a GPU
so many tokens keep all its processors busy.
"""


def batch_tokens(device: str) -> int:
    """Return how many tokens one call of a model takes on a type of device: enough to be fast, no more than helps."""
    return BATCH_TOKENS.get(device, BATCH_TOKENS["cuda"])


def grouped(batches: Iterable[Batch], tokens: int) -> Iterator[list[Batch]]:
    """Collect consecutive batches into lists that :func:`merge` accepts.

    Args:
        batches: the keyword arguments of a model, one dict a batch.
        tokens: a list is complete when it holds as many, padding not counted.

    Yields:
        lists of batches with the same tensors. A batch with anything but ``(batch, length)`` tensors is a list by
        itself.
    """
    group: list[Batch] = []
    have = 0
    for batch in batches:
        if group and _signature(batch) != _signature(group[0]):
            yield group
            group, have = [], 0
        group.append(batch)
        if _signature(batch) is None or (have := have + int(attended_mask(batch).sum())) >= tokens:
            yield group
            group, have = [], 0
    if group:
        yield group


def merge(batches: Sequence[Batch]) -> dict[str, Any]:
    """Merge one list of :func:`grouped` into one batch. Shorter sequences are padded with zeros at the end."""
    if len(batches) == 1:
        return dict(batches[0])
    length = max(batch["input_ids"].shape[1] for batch in batches)
    return {
        key: torch.cat([F.pad(batch[key], (0, length - batch[key].shape[1])) for batch in batches])
        for key in batches[0]
    }


def select(batch: Batch, sequences: Tensor) -> dict[str, Any]:
    """Select sequences of a batch by index. A tensor with another first dimension, like shared ``position_ids``, stays.

    Args:
        batch: the keyword arguments of a model.
        sequences: ``(n,)`` int64 indices.
    """
    count = attended_mask(batch).shape[:1]
    return {
        key: value[sequences.to(value.device)] if isinstance(value, Tensor) and value.shape[:1] == count else value
        for key, value in batch.items()
    }


def digest_of(batch: Batch, keys: Iterable[str] = ("input_ids", "attention_mask")) -> bytes:
    """Return a hash of some tensors of integers of a batch, 16 bytes. Keys that it does not have do not count."""
    digest = hashlib.blake2b(digest_size=16)
    for key in keys:
        if isinstance(value := batch.get(key), Tensor):
            digest.update(f"{key} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().long().contiguous().numpy().tobytes())
    return digest.digest()


def _signature(batch: Batch) -> dict[str, torch.dtype] | None:
    """Return name and dtype of the tensors of a batch, or ``None`` if it cannot be merged with another."""
    values = [batch.get("input_ids"), batch.get("attention_mask"), *batch.values()]
    if not all(isinstance(value, Tensor) and value.ndim == 2 for value in values):
        return None
    same = all(value.shape == batch["input_ids"].shape for value in values)
    return {key: value.dtype for key, value in batch.items()} if same else None
