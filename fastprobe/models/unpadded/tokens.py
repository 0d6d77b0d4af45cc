"""Tokens of a batch side by side without padding, and the way back."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True)
class UnpaddedTokens:
    """Positions of the N tokens of a padded batch, in the order of unpadded states ``(N, ...)``.

    Sequences are sorted by length. Sequences of one length are therefore adjacent and form a ``(sequences, length)``
    view, on which attention needs neither padding nor mask.

    Args:
        shape: (batch, length) of the padded batch.
        index: ``(N,)`` int64, position of each token in the padded batch of ``batch * length`` rows.
        runs: (sequences, length) of each run of sequences of one length, in order.
    """

    shape: tuple[int, int]
    index: Tensor
    runs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, mask: Tensor) -> UnpaddedTokens:
        """Return the tokens where ``mask``, ``(batch, length)`` bool, is true; empty sequences are left out."""
        lengths = mask.sum(1)
        order = lengths.argsort(stable=True)
        place = torch.arange(mask.numel(), device=mask.device).view(mask.shape)
        runs = tuple((len(list(same)), n) for n, same in groupby(lengths[order].tolist()) if n)
        return cls((mask.shape[0], mask.shape[1]), place[order][mask[order]], runs)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def sequence(self) -> Tensor:
        """Number of each token's sequence in the batch, ``(N,)``."""
        return self.index // self.shape[1]

    def unpad(self, padded: Tensor) -> Tensor:
        """Return the tokens of ``(batch, length, ...)`` as ``(N, ...)``."""
        return padded.flatten(0, 1).index_select(0, self.index)

    def pad(self, unpadded: Tensor) -> Tensor:
        """Return ``(N, ...)`` as ``(batch, length, ...)``, with zeros at padding."""
        rows = unpadded.new_zeros(self.shape[0] * self.shape[1], *unpadded.shape[1:])
        return rows.index_copy_(0, self.index, unpadded).view(*self.shape, *unpadded.shape[1:])
