"""Gram blocks: the sums that every linearity score is made of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch import cpu_library as _native
from fastprobe.ops._dispatch import triton as _triton
from fastprobe.ops._dispatch.capture import may_wait_for
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops.gram import cuda as _cuda_gram
from fastprobe.ops.gram import cuda_library as _cuda
from fastprobe.ops.gram import triton
from fastprobe.ops.gram.call import GramCall, in_float64
from fastprobe.ops.rows import select_rows

CHAIN = 256
"""Rows that one library call adds up.

Some kernels of MKL and all of oneDNN carry one float32 sum through all rows of a call: of 2,048 bfloat16 rows about a
mean of 3 standard deviations it comes out low by 9e-6 of sqrt(G_ii G_jj), at 256 by less than 1e-6. It costs 11 % of
the products' time (benchmarks/NOTES.md).
"""

CHAIN_16BIT = 64
"""The same for 16-bit rows, of which some columns round to one side in longer chains (benchmarks/NOTES.md)."""

FEW = 512
"""Rows that are too few for the errors of chains to cancel, so that theirs are shorter."""

CHAIN_OF_FEW = 32
"""The same for them."""

FLUSH = 2048
"""Rows added up in float32 before the sum goes to float64."""

PANEL = 128
"""Width of the panels a triangle is cut into, so that little below the diagonal is computed."""


def _check(call: GramCall) -> None:
    rows, fold = call.rows, call.fold
    if fold.ndim != 1 or fold.dtype != torch.int64:
        raise ShapeError(f"gram_: fold must be (N,) int64, got {tuple(fold.shape)} {fold.dtype}")
    if not len(call.grams) == len(call.pairs) or not len(call.sums) == len(call.squares) == len(call.origins) == len(
        rows
    ):
        raise ShapeError("gram_: one gram a pair; one sum, one square (or None) and one origin a block of rows")
    for i, block in enumerate(rows):
        if block.ndim != 2 or block.shape[0] != fold.shape[0] or not block.dtype.is_floating_point:
            raise ShapeError(
                f"gram_: rows[{i}] must be ({fold.shape[0]}, D) floating to match fold, "
                f"got {tuple(block.shape)} {block.dtype}"
            )
        if call.origins[i].shape != block.shape[1:]:
            raise ShapeError(
                f"gram_: origins[{i}] must be {tuple(block.shape[1:])}, got {tuple(call.origins[i].shape)}"
            )
        for name, total in (("sums", call.sums[i]), ("squares", call.squares[i])):
            if total is not None and (total.shape[1:] != block.shape[1:] or total.dtype != torch.float64):
                raise ShapeError(
                    f"gram_: {name}[{i}] must be (folds, {block.shape[1]}) float64, "
                    f"got {tuple(total.shape)} {total.dtype}"
                )
    folds = [len(total) for total in call.totals] + [len(gram) for gram in call.grams if len(gram) > 1]
    if folds and len(fold) and may_wait_for(fold) and int(fold.max()) >= min(folds):
        raise ShapeError(f"gram_: fold must be below {min(folds)}, the folds of the sums, got {int(fold.max())}")
    for (i, j), gram in zip(call.pairs, call.grams, strict=True):
        if not (0 <= i < len(rows) and 0 <= j < len(rows)):
            raise ShapeError(f"gram_: pair {(i, j)} is not of two of the {len(rows)} blocks of rows")
        shape = (rows[i].shape[1], rows[j].shape[1])
        if gram.shape[1:] != shape or gram.dtype != torch.float64:
            raise ShapeError(
                f"gram_: the gram of pair {(i, j)} must be (folds, {shape[0]}, {shape[1]}) float64, "
                f"got {tuple(gram.shape)} {gram.dtype}"
            )


@operation(check=_check, arguments=GramCall)
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
    exact: bool = False,
) -> None:
    """Add the products of column blocks, fold by fold, to float64 sums, in place.

        z_i = rows[i] - origins[i]
        grams[p][f] += weight * sum_{n: fold[n] = f} z_i[n] z_j[n]^T      for pairs[p] = (i, j)
        sums[i][f]  += weight * sum_{n: fold[n] = f} z_i[n]
        squares[i][f] += weight * sum_{n: fold[n] = f} z_i[n]^2

    Of a pair (i, i) only the upper triangle is part of the contract. 16-bit rows are widened before anything is
    done with them; products of float32 rows are summed in float32 over at most ``FLUSH`` rows, all else in float64.
    With ``exact``, or beside a block of float64 rows, everything is widened to float64 first.

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
        exact: for audits: multiply in float64 whatever the rows are.

    Raises:
        ShapeError: an argument does not match ``rows`` or ``fold``.
    """
    scratch, wide = _Scratch(fold.device), torch.float64 if in_float64(rows, exact) else torch.float32
    for f in fold.unique().tolist():
        if f < 0:
            continue
        for chunk in (fold == f).nonzero().flatten().split(FLUSH):
            packed = _Packed(rows, chunk, origins, scratch, wide)
            for gram, (left, right) in zip(grams, pairs, strict=True):
                out = gram[f if len(gram) > 1 else 0]
                if left == right:
                    _add_triangle(out, packed.chains[left], weight)
                else:
                    out.add_(_product(packed.chains[left], packed.chains[right]), alpha=weight)
            for i, (total, square) in enumerate(zip(sums, squares, strict=True)):
                if total is not None:
                    total[f].add_(packed.sums(i), alpha=weight)
                if square is not None:
                    square[f].add_(packed.squares(i), alpha=weight)


class _Scratch:
    """Memory that is taken once a call and used again chunk after chunk: fresh pages cost more than filling them."""

    def __init__(self, device: torch.device):
        self._device = device
        self._memory: dict[int, Tensor] = {}

    def empty(self, use: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """An uninitialised matrix, valid until the next one for the same ``use`` is asked for."""
        size = shape[0] * shape[1]
        if use not in self._memory or len(self._memory[use]) < size:
            self._memory[use] = torch.empty(size, dtype=dtype, device=self._device)
        return self._memory[use][:size].view(shape)


class _Packed:
    """Some rows of every block about their origins: the caller's own memory where nothing has to be done to it."""

    def __init__(
        self, rows: Sequence[Tensor], chunk: Tensor, origins: Sequence[Tensor], scratch: _Scratch, wide: torch.dtype
    ):
        self._blocks: list[Tensor] = []
        for i, (block, origin) in enumerate(zip(rows, origins, strict=True)):
            raw = select_rows(block, chunk)
            if raw.dtype != wide or origin.any():
                out = scratch.empty(i, (raw.shape[0], raw.shape[1]), wide)
                raw = torch.sub(raw, origin.to(wide), out=out)
            self._blocks.append(raw)
        chain = CHAIN if all(block.dtype.itemsize > 2 for block in rows) else CHAIN_16BIT
        if len(chunk) <= FEW:
            chain = CHAIN_OF_FEW
        self.chains = [block.split(chain) for block in self._blocks]

    def sums(self, i: int) -> Tensor:
        return self._blocks[i].sum(0)

    def squares(self, i: int) -> Tensor:
        block = self._blocks[i]
        total = torch.zeros(block.shape[1], dtype=torch.float64, device=block.device)
        for part in self.chains[i]:  # few enough rows that their squares stay in a cache
            total += part.square().sum(0)
        faint = (total < 1e-30 * len(block)).nonzero().flatten()
        if len(faint):  # trained models have columns near 1e-32, whose squares float32 does not hold
            total[faint] = block[:, faint].double().square_().sum(0)
        return total


def _product(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """``x^T y`` of rows that come in chains."""
    product = torch.mm(x[0].mT, y[0])
    for a, b in zip(x[1:], y[1:], strict=True):
        product += torch.mm(a.mT, b)  # not addmm_, which goes on with the same sum
    return product


def _add_triangle(out: Tensor, chains: Sequence[Tensor], weight: float) -> None:
    """Add the upper triangle of ``x^T x``, panel by panel."""
    for start in range(0, len(out), PANEL):
        panel = _product([x[:, start : start + PANEL] for x in chains], [x[:, start:] for x in chains])
        out[start : start + PANEL, start:].add_(panel, alpha=weight)


def _cuda_refuses(call: GramCall) -> str | None:
    return _cuda.gram_refuses(call)


@gram_.register("cuda", unless=_cuda_refuses)
def _on_cuda(call: GramCall) -> None:
    """``csrc/cuda/gram.cu``: 16-bit rows on Hopper's wgmma, sums of 128 rows in it; any rows in float64 if exact."""
    _cuda_gram.gram_(call)


def _triton_refuses(call: GramCall) -> str | None:
    if call.exact:
        return "it multiplies planes of bfloat16"
    return _strided(call) or _triton.refuses(call.tensors, call.rows)


@gram_.register(
    "triton",
    unless=_triton_refuses,
    passed_over=lambda call, *_, **__: _triton.passed_over([call.fold], triton.gram_agrees),
)
def _on_triton(call: GramCall) -> None:
    """``kernels/gram.py``: 16-bit rows as they are, others as planes of bfloat16; sums of 128 rows in tensor cores."""
    triton.add_products_(call)


def _cpu_refuses(call: GramCall) -> str | None:
    if call.exact:
        return "the C++ kernels multiply in float32"
    elsewhere = _native.not_on_a_cpu((*call.grams, *call.totals, call.fold, *call.origins))
    return elsewhere or _strided(call) or _native.cpu_refuses(call.rows)


@gram_.register("cpu", unless=_cpu_refuses)
def _on_cpu(call: GramCall) -> None:
    """``csrc/cpu/gram.cpp``: sums of 128 rows or fewer in registers, of 2,048 in float32, the rest in float64."""
    about = [origin.float() if origin.any() else None for origin in call.origins]  # kept here while C++ reads it
    fold = call.fold.contiguous()
    _native.cpu_library().gram(
        blocks=[
            (_native.rows_argument(block), *map(_address, sums_of))
            for block, *sums_of in zip(call.rows, about, call.sums, call.squares, strict=True)
        ],
        pairs=[
            (i, j, gram.data_ptr(), gram.stride(0) if len(gram) > 1 else 0, gram.stride(1))
            for (i, j), gram in zip(call.pairs, call.grams, strict=True)
        ],
        fold=fold.data_ptr(),
        n=len(fold),
        folds=int(fold.max()) + 1 if len(fold) else 0,
        weight=call.weight,
        threads=torch.get_num_threads(),
        isa=_native.chosen_instruction_set(),
    )


def _strided(call: GramCall) -> str | None:
    """That the sums do not lie as kernels write them, or ``None``."""
    if any(gram.stride(2) != 1 for gram in call.grams):
        return "the columns of a gram do not lie side by side"
    return None if all(total.is_contiguous() for total in call.totals) else "sums and squares must be contiguous"


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
