"""The operation ``gram_``: its arguments, their check, and its definition in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch.capture import may_wait_for
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops.gram.chains import Scratch, add_triangle, chain_length, product, rows_about, squares_of
from fastprobe.ops.gram.known_folds import largest_of

FLUSH = 2048
"""Rows that are summed in float32 before the sum is added to float64."""


class Block(NamedTuple):
    """A block of columns, and the sums of its columns that are wanted."""

    rows: Tensor  # (N, D), any floating dtype, any strides
    origin: Tensor  # (D,) float64, subtracted from every row
    sum: Tensor | None = None  # (F, D) float64: the sums are added to it
    square: Tensor | None = None  # (F, D) float64: the sums of squares are added to it


class Pair(NamedTuple):
    """Two blocks to multiply, and the matrices that their product is added to."""

    i: int  # the left block
    j: int  # the right block
    gram: Tensor  # (F, D_i, D_j) float64; (1, D_i, D_j) adds up all folds


def in_float64(blocks: Sequence[Block], exact: bool) -> bool:
    """Return whether all rows are widened to float64 before they are multiplied."""
    return exact or any(block.rows.dtype == torch.float64 for block in blocks)


def wanted_totals(blocks: Sequence[Block]) -> list[Tensor]:
    """Return the tensors of sums and of squares that are not ``None``."""
    return [total for block in blocks for total in (block.sum, block.square) if total is not None]


def lengths_by_fold(blocks: Sequence[Block], pairs: Sequence[Pair]) -> list[int]:
    """Return the number of folds of every output that keeps the folds apart."""
    return [len(total) for total in wanted_totals(blocks)] + [len(p.gram) for p in pairs if len(p.gram) > 1]


def _check(blocks: Sequence[Block], pairs: Sequence[Pair], fold: Tensor, *, exact: bool = False) -> None:
    if fold.ndim != 1 or fold.dtype != torch.int64:
        raise ShapeError(f"gram_: fold must be (N,) int64, got {tuple(fold.shape)} {fold.dtype}")
    for b, block in enumerate(blocks):
        _check_block(b, block, len(fold))
    folds = lengths_by_fold(blocks, pairs)
    if folds and len(fold) and may_wait_for(fold) and largest_of(fold) >= min(folds):
        raise ShapeError(f"gram_: fold must be below {min(folds)}, the folds of the sums, got {largest_of(fold)}")
    for p, (i, j, gram) in enumerate(pairs):
        if not (0 <= i < len(blocks) and 0 <= j < len(blocks)):
            raise ShapeError(f"gram_: pairs[{p}] must name two of the {len(blocks)} blocks, got {(i, j)}")
        shape = (blocks[i].rows.shape[1], blocks[j].rows.shape[1])
        if gram.shape[1:] != shape or gram.dtype != torch.float64:
            raise ShapeError(
                f"gram_: pairs[{p}].gram must be (folds, {shape[0]}, {shape[1]}) float64, "
                f"got {tuple(gram.shape)} {gram.dtype}"
            )


def _check_block(b: int, block: Block, n: int) -> None:
    rows, origin, *totals = block
    if rows.ndim != 2 or rows.shape[0] != n or not rows.dtype.is_floating_point:
        raise ShapeError(
            f"gram_: blocks[{b}].rows must be ({n}, D) floating to match fold, got {tuple(rows.shape)} {rows.dtype}"
        )
    width = rows.shape[1:]
    if origin.shape != width or origin.dtype != torch.float64:
        raise ShapeError(
            f"gram_: blocks[{b}].origin must be ({width[0]},) float64, got {tuple(origin.shape)} {origin.dtype}"
        )
    for name, total in zip(("sum", "square"), totals, strict=True):
        if total is not None and (total.shape[1:] != width or total.dtype != torch.float64):
            raise ShapeError(
                f"gram_: blocks[{b}].{name} must be (folds, {width[0]}) float64, got {tuple(total.shape)} {total.dtype}"
            )


@operation(check=_check)
def gram_(blocks: Sequence[Block], pairs: Sequence[Pair], fold: Tensor, *, exact: bool = False) -> None:
    """Add products and sums of column blocks, fold by fold, to float64 matrices, in place.

        z_b = blocks[b].rows - blocks[b].origin
        gram[f]   += sum_{n: fold[n] = f} z_i[n] z_j[n]^T      for every Pair(i, j, gram)
        sum[f]    += sum_{n: fold[n] = f} z_b[n]               for every Block(rows, origin, sum, square)
        square[f] += sum_{n: fold[n] = f} z_b[n]^2

    Only the upper triangle of a pair (i, i) is part of the contract. 16-bit rows are widened first. Products of float32
    rows are summed in float32 over at most ``FLUSH`` rows, and everything else in float64. With ``exact``, or beside a
    block of float64 rows, all rows are widened to float64 first.

    Set an origin near the mean of each column whose mean is many standard deviations from zero, and to zero in other
    columns. Float32 then holds the digits that vary. Example: for values of 1000.0 to 1000.9 an origin of 1000 leaves
    0.0 to 0.9 to be multiplied. Rows about zero are not copied.

    Args:
        blocks: the column blocks, each with N rows.
        pairs: the products that are wanted, by the numbers of their blocks.
        fold: ``(N,)`` int64: the fold of each row; rows with a negative fold are left out, whatever they hold.
        exact: for audits: multiply in float64 whatever the dtype of the rows.

    Raises:
        ShapeError: the shape or dtype of an argument is wrong.
    """
    wide = torch.float64 if in_float64(blocks, exact) else torch.float32
    dtypes, memory = {block.rows.dtype for block in blocks}, [Scratch(fold.device) for _ in blocks]
    for f in fold.unique().tolist():
        if f < 0:
            continue
        for chunk in (fold == f).nonzero().flatten().split(FLUSH):
            z = [rows_about(b.origin, b.rows, chunk, wide, scratch) for b, scratch in zip(blocks, memory, strict=True)]
            chains = [rows.split(chain_length(dtypes, len(chunk))) for rows in z]
            for i, j, gram in pairs:
                out = gram[f if len(gram) > 1 else 0]
                if i == j:
                    add_triangle(out, chains[i])
                else:
                    out.add_(product(chains[i], chains[j]))
            for block, rows, parts in zip(blocks, z, chains, strict=True):
                if block.sum is not None:
                    block.sum[f].add_(rows.sum(0))
                if block.square is not None:
                    block.square[f].add_(squares_of(rows, parts))
