"""The tokens of a batch side by side without padding, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class FlatTokens:
    """Where each token of a padded batch lies in a flat buffer of N tokens.

    Sequences are sorted by length, so those of one length lie side by side and are a ``(sequences, length)`` view:
    attention over them needs neither padding nor mask.

    Args:
        shape: (batch, length) of the padded batch.
        index: ``(N,)`` int64, place of each token in the padded batch as one row.
        runs: (sequences, length) of each run of sequences of one length, in the order of the buffer.
    """

    shape: tuple[int, int]
    index: Tensor
    runs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, mask: Tensor) -> FlatTokens:
        """The tokens where ``mask``, ``(batch, length)`` bool, is true. A sequence without any is left out."""
        lengths = mask.sum(1)
        order = lengths.argsort(stable=True)
        place = torch.arange(mask.numel(), device=mask.device).view(mask.shape)
        runs = tuple((len(list(same)), n) for n, same in groupby(lengths[order].tolist()) if n)
        return cls((mask.shape[0], mask.shape[1]), place[order][mask[order]], runs)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def sequence(self) -> Tensor:
        """``(N,)``: which sequence of the batch each token is of."""
        return self.index // self.shape[1]

    def flatten(self, padded: Tensor) -> Tensor:
        """``(batch, length, ...)`` as ``(N, ...)``."""
        return padded.flatten(0, 1).index_select(0, self.index)

    def restore(self, flat: Tensor) -> Tensor:
        """``(N, ...)`` as ``(batch, length, ...)`` with zeros where there is no token."""
        rows = flat.new_zeros(self.shape[0] * self.shape[1], *flat.shape[1:])
        return rows.index_copy_(0, self.index, flat).view(*self.shape, *flat.shape[1:])
