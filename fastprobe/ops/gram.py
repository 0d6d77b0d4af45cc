"""Gram blocks: the sums that every linearity score is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastprobe.errors import ShapeError
from fastprobe.ops._operation import operation
from fastprobe.ops._platform import matmul
from fastprobe.ops._rows import pick_rows

CHAIN = 2048
"""Rows summed in float32 before the sum goes to float64: error at most 2e-7 of sqrt(G_ii G_jj)."""

PANEL = 128
"""Width of the panels a triangle is cut into: 1.5 to 1.8 times the whole square (benchmarks/NOTES.md)."""


def _check(
    grams: Sequence[Tensor],
    sums: Sequence[Tensor | None],
    squares: Sequence[Tensor | None],
    rows: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    fold: Tensor,
    origins: Sequence[Tensor],
    *,
    weight: float = 1.0,
) -> None:
    if fold.ndim != 1 or fold.dtype != torch.int64:
        raise ShapeError(f"gram_: fold must be (N,) int64, got {tuple(fold.shape)} {fold.dtype}")
    for i, block in enumerate(rows):
        if block.ndim != 2 or block.shape[0] != fold.shape[0] or not block.dtype.is_floating_point:
            raise ShapeError(
                f"gram_: rows[{i}] must be ({fold.shape[0]}, D) floating to match fold, "
                f"got {tuple(block.shape)} {block.dtype}"
            )
        if origins[i].shape != block.shape[1:]:
            raise ShapeError(f"gram_: origins[{i}] must be {tuple(block.shape[1:])}, got {tuple(origins[i].shape)}")
    if not len(grams) == len(pairs) or not len(sums) == len(squares) == len(origins) == len(rows):
        raise ShapeError("gram_: one gram a pair; one sum, one square (or None) and one origin a block of rows")
    for (i, j), gram in zip(pairs, grams, strict=True):
        shape = (rows[i].shape[1], rows[j].shape[1])
        if gram.shape[1:] != shape or gram.dtype != torch.float64:
            raise ShapeError(
                f"gram_: the gram of pair {(i, j)} must be (folds, {shape[0]}, {shape[1]}) float64, "
                f"got {tuple(gram.shape)} {gram.dtype}"
            )


@operation(check=_check)
def gram_(
    grams: Sequence[Tensor],
    sums: Sequence[Tensor | None],
    squares: Sequence[Tensor | None],
    rows: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    fold: Tensor,
    origins: Sequence[Tensor],
    *,
    weight: float = 1.0,
) -> None:
    """Add the products of column blocks, fold by fold, to float64 sums, in place.

        z_i = rows[i] - origins[i]
        grams[p][f] += weight * sum_{n: fold[n] = f} z_i[n] z_j[n]^T      for pairs[p] = (i, j)
        sums[i][f]  += weight * sum_{n: fold[n] = f} z_i[n]
        squares[i][f] += weight * sum_{n: fold[n] = f} z_i[n]^2

    Of a pair (i, i) only the upper triangle is part of the contract. 16-bit rows are widened before anything is
    done with them; products of float32 rows are summed in float32 over at most ``CHAIN`` rows, all else in float64.

    Args:
        grams: one ``(F, D_i, D_j)`` float64 a pair; ``(1, D_i, D_j)`` pools all folds.
        sums: one ``(F, D_i)`` float64 a block, or ``None`` where it is not wanted.
        squares: the same, for the sums of squares.
        rows: the column blocks, each ``(N, D_i)``, any floating dtype, any strides.
        pairs: which blocks to multiply, as indices into ``rows``.
        fold: ``(N,)`` int64: the fold of each row; rows with a negative fold are left out, whatever they hold.
        origins: one ``(D_i,)`` float64 a block; near the mean of its rows where that is many standard deviations from
            zero, so that float32 digits are kept for what varies, and zero elsewhere: rows about zero are not copied.
        weight: 1 adds rows, -1 takes them out again.

    Raises:
        ShapeError: an argument does not match ``rows`` or ``fold``.
    """
    scratch = _Scratch(fold.device)
    for f in fold.unique().tolist():
        if f < 0:
            continue
        for chunk in (fold == f).nonzero().flatten().split(CHAIN):
            packed = _Packed(rows, chunk, origins, scratch)
            for gram, (left, right) in zip(grams, pairs, strict=True):
                out = gram[f if len(gram) > 1 else 0]
                if left == right:
                    _add_triangle(out, packed.columns(left), weight)
                else:
                    out.add_(matmul(packed.columns(left), packed.rows(right)), alpha=weight)
            for i, (total, square) in enumerate(zip(sums, squares, strict=True)):
                if total is not None:
                    total[f].add_(packed.sums(i), alpha=weight)
                if square is not None:
                    square[f].add_(packed.squares(i), alpha=weight)


class _Scratch:
    """Memory that is taken once a call and used again chunk after chunk: fresh pages cost more than filling them."""

    def __init__(self, device: torch.device):
        self._device = device
        self._memory: dict[object, Tensor] = {}

    def empty(self, use: object, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """An uninitialised matrix, valid until the next one for the same ``use`` is asked for."""
        size = shape[0] * shape[1]
        if use not in self._memory or len(self._memory[use]) < size:
            self._memory[use] = torch.empty(size, dtype=dtype, device=self._device)
        return self._memory[use][:size].view(shape)


class _Packed:
    """Some rows of every block, about their origins, in the layouts that products want: each made once, when asked."""

    def __init__(self, rows: Sequence[Tensor], chunk: Tensor, origins: Sequence[Tensor], scratch: _Scratch):
        self._wide = torch.float64 if any(block.dtype == torch.float64 for block in rows) else torch.float32
        self._raw = [pick_rows(block, chunk) for block in rows]
        self._origins = origins
        self._scratch = scratch
        self._rows: dict[int, Tensor] = {}
        self._columns: dict[int, Tensor] = {}

    def rows(self, i: int) -> Tensor:
        """A block as it is, (n, D), adjacent rows: the caller's own memory where nothing has to be done to it."""
        if i not in self._rows:
            raw, origin = self._raw[i], self._origins[i].to(self._wide)
            if raw.dtype == self._wide and raw.is_contiguous() and not origin.any():
                self._rows[i] = raw
            else:
                out = self._scratch.empty(("rows", i), (raw.shape[0], raw.shape[1]), self._wide)
                self._rows[i] = torch.sub(raw, origin, out=out)
        return self._rows[i]

    def columns(self, i: int) -> Tensor:
        """A block's transpose, (D, n), adjacent rows."""
        if i not in self._columns:
            raw, origin = self._raw[i], self._origins[i].to(self._wide)
            out = self._scratch.empty(("columns", i), (raw.shape[1], raw.shape[0]), self._wide)
            self._columns[i] = torch.sub(raw.mT, origin[:, None], out=out)
        return self._columns[i]

    def sums(self, i: int) -> Tensor:
        return self._columns[i].sum(1) if i in self._columns else self.rows(i).sum(0)

    def squares(self, i: int) -> Tensor:
        block, along = (self._columns[i], 1) if i in self._columns else (self.rows(i), 0)
        # In float64: trained models have columns near 1e-32, whose squares float32 does not hold.
        return torch.linalg.vector_norm(block, dim=along, dtype=torch.float64).square_()


def _add_triangle(out: Tensor, x: Tensor, weight: float) -> None:
    """Add the upper triangle of ``x x^T``, panel by panel."""
    for start in range(0, len(x), PANEL):
        panel = matmul(x[start:], x[start : start + PANEL].mT)
        out[start : start + PANEL, start:].add_(panel.mT, alpha=weight)
