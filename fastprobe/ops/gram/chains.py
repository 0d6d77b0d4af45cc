"""Products of rows in short chains of float32 additions, for the definition of ``gram_``.

Some kernels of MKL and all of oneDNN add up all rows of a call in one float32 number. Such a sum of 2,048 bfloat16 rows
at a mean of 3 standard deviations is low by 9e-6 of sqrt(G_ii G_jj); a sum of 256 rows, by less than 1e-6. Rows are
therefore cut into chains, with one library call each. That costs 11 % of the products' time (benchmarks/NOTES.md).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fastprobe.ops.rows import select_rows

CHAIN = 256
"""Rows of a chain."""

CHAIN_16BIT = 64
"""Rows of a chain beside 16-bit rows: some of their columns round to one side in longer ones (benchmarks/NOTES.md)."""

FEW = 512
"""Rows that are too few for the errors of many chains to cancel, so that their chains are shorter."""

CHAIN_OF_FEW = 32
"""Rows of a chain where there are ``FEW`` or less."""

PANEL = 128
"""Columns of a panel of a triangle: panels keep the work below the diagonal small."""

FAINT = 1e-30
"""Mean square of a column below which float32 may not hold its squares: trained models have columns near 1e-32."""


class Scratch:
    """Memory of one block that is used again for every chunk of rows: fresh pages cost more than filling them."""

    def __init__(self, device: torch.device):
        self._device = device
        self._memory: Tensor | None = None

    def empty(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return an uninitialised matrix, valid until the next call."""
        size = rows * width
        if self._memory is None or len(self._memory) < size:
            self._memory = torch.empty(size, dtype=dtype, device=self._device)
        return self._memory[:size].view(rows, width)


def chain_length(dtypes: Collection[torch.dtype], n: int) -> int:
    """Return the rows of a chain, for ``n`` rows of blocks of these dtypes."""
    if n <= FEW:
        return CHAIN_OF_FEW
    return CHAIN if all(dtype.itemsize > 2 for dtype in dtypes) else CHAIN_16BIT


def rows_about(origin: Tensor, rows: Tensor, index: Tensor, wide: torch.dtype, scratch: Scratch) -> Tensor:
    """Return ``rows[index] - origin`` in the dtype ``wide``, without a copy where ``rows`` already hold that.

    Args:
        origin: ``(D,)``.
        rows: ``(N, D)``.
        index: ascending.
        wide: dtype of the result, the same in every call with this ``scratch``.
        scratch: memory for a copy.
    """
    raw = select_rows(rows, index)
    if raw.dtype == wide and not origin.any():
        return raw
    return torch.sub(raw, origin.to(wide), out=scratch.empty(len(raw), raw.shape[1], wide))


def product(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """Return ``x^T y`` of rows that are cut into chains."""
    total = torch.mm(x[0].mT, y[0])
    for a, b in zip(x[1:], y[1:], strict=True):
        total += torch.mm(a.mT, b)  # not addmm_, which continues the same chain
    return total


def add_triangle(out: Tensor, chains: Sequence[Tensor]) -> None:
    """Add the upper triangle of ``x^T x`` of rows that are cut into chains, panel by panel."""
    for start in range(0, len(out), PANEL):
        panel = product([x[:, start : start + PANEL] for x in chains], [x[:, start:] for x in chains])
        out[start : start + PANEL, start:].add_(panel)


def squares_of(rows: Tensor, chains: Sequence[Tensor]) -> Tensor:
    """Return the sum of squares of every column, ``(D,)`` float64.

    Args:
        rows: ``(n, D)``.
        chains: the same rows in parts that are small enough for their squares to stay in a cache.
    """
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in chains:
        total += part.square().sum(0)
    faint = (total < FAINT * len(rows)).nonzero().flatten()
    if len(faint):
        total[faint] = rows[:, faint].double().square_().sum(0)
    return total
