"""Batches of a text whose tokens are all scored, gathered from several processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastprobe.data.checks import counted_mask
from fastprobe.models.calling import to_device
from fastprobe.runtime.distributed import Ranks


class WholeText:
    """Batches of a text that may be scored whole, so that every process scores the batches that one process would.

    Args:
        size: sequences to score; ``None`` for all. The batches are let go when there are more.
    """

    def __init__(self, size: int | None):
        self._size, self._sequences = size, 0
        self._batches: dict[int, tuple[Mapping[str, Any], Tensor]] = {}

    def add(self, number: int, batch: Mapping[str, Any], fold: Tensor) -> None:
        """Add a batch of this process, with its number in the stream of all and the fold of each sequence."""
        self._sequences += int(counted_mask(batch).any(1).sum())
        if self._size is not None and self._sequences > self._size:
            self._batches.clear()
        else:
            self._batches[number] = (to_device(batch, torch.device("cpu")), fold)

    def gathered(self, ranks: Ranks) -> list[tuple[Mapping[str, Any], Tensor]]:
        """Return the batches of all processes in the order of the stream."""
        found = {number: one for of_process in ranks.gather(self._batches) for number, one in of_process.items()}
        return [found[number] for number in sorted(found)]
