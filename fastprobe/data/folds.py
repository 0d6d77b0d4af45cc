"""Fold of every sequence in cross-validation: sequence s is in fold s mod F."""

from __future__ import annotations

import torch
from torch import Tensor


def fold_of_sequences(
    first: int, shape: tuple[int, ...] | torch.Size, folds: int, device: torch.device, step: int = 1
) -> Tensor:
    """Return the fold of every token of the sequences ``first``, ``first + step``, ...

        fold[s, ...] = (first + step s) mod folds

    All tokens of a sequence are in one fold, so a held-out token never has a neighbour in the training folds.

    Args:
        first: number of the first sequence.
        shape: ``(sequences, ...)``.
        folds: number of folds.
        device: device of the result.
        step: difference between the numbers of two sequences in succession.

    Returns:
        ``shape`` int64.
    """
    fold = (first + step * torch.arange(shape[0], device=device)) % folds
    return fold.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
