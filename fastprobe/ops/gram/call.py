"""The arguments of ``gram_`` as one: what its check, its implementations and their refusals take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class GramCall(NamedTuple):
    """A call of :func:`fastprobe.ops.gram_`, whose docstring says what its arguments are."""

    grams: Sequence[Tensor]
    sums: Sequence[Tensor | None]
    squares: Sequence[Tensor | None]
    rows: Sequence[Tensor]
    pairs: Sequence[tuple[int, int]]
    fold: Tensor
    origins: Sequence[Tensor]
    weight: float = 1.0
    exact: bool = False

    @property
    def totals(self) -> list[Tensor]:
        """The sums and squares that are wanted."""
        return [total for total in (*self.sums, *self.squares) if total is not None]

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, the fold first."""
        return [self.fold, *self.grams, *self.totals, *self.rows, *self.origins]

    @property
    def folds(self) -> int:
        """How many folds there can be: as many as the shortest list of sums by fold has places."""
        by_fold = self.totals + [gram for gram in self.grams if len(gram) > 1]
        return min((len(total) for total in by_fold), default=1)

    @property
    def in_float64(self) -> bool:
        """Whether everything is widened to float64."""
        return in_float64(self.rows, self.exact)


def in_float64(rows: Sequence[Tensor], exact: bool) -> bool:
    """Whether ``gram_`` widens these rows to float64."""
    return exact or any(block.dtype == torch.float64 for block in rows)
