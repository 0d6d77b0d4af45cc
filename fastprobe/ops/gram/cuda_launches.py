"""The launches of one call of ``gram_`` on the kernels in CUDA C++.

Nothing before a launch waits for the device, and all memory comes from torch, so that a CUDA graph may capture a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastprobe.kernels._slots import slots_of
from fastprobe.ops.gram.api import Block, Pair, in_float64, lengths_by_fold
from fastprobe.ops.gram.layout import address_of
from fastprobe.ops.gram.origins import moved_by

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
"""The dtypes that the kernels read, by their numbers in ``csrc/cuda/rows.cuh``."""

SLAB = 128
"""Rows of one fold that are summed inside the tensor core."""

TILE, EXACT_TILE = 128, 64
"""Columns of the two blocks that one item of work multiplies, on wgmma and in float64."""

PAIRS = 32
"""Pairs of one launch: its arguments must stay below 32 KB."""

PART = 16
"""Least slabs of a part of a fold's rows: below them writing its sums takes as long as computing them."""


@dataclass(frozen=True)
class Slabs:
    """The order in which rows are read: fold after fold, each filled up with empty rows to whole slabs."""

    row: Tensor  # (positions,) int32: the row at a position, -1 for none
    first: Tensor  # (folds + 1,) int32: the first slab of each fold, and the end of the last


def slabs_of(fold: Tensor, folds: int) -> Slabs:
    """Return the position of each row. Shapes depend on shapes only, so that nothing waits for the device.

    Args:
        fold: ``(N,)`` int64, N > 0; rows of a negative fold are left out.
        folds: the number of folds; a single one takes the rows of all.
    """
    slots = slots_of(fold.clamp(max=folds - 1), folds, SLAB)
    place = slots.start[:, None] + torch.arange(SLAB, device=fold.device)
    row = torch.where(place < slots.end[:, None], slots.order[place.clamp(max=len(fold) - 1)], -1)
    return Slabs(row.flatten().int(), torch.nn.functional.pad(slots.fold_end, (1, 0)).int())


def tiles_of(height: int, width: int, diagonal: bool, tile: int) -> int:
    """Return the number of tiles of a gram; of a block with itself, those on and above the diagonal."""
    down, across = -(-height // tile), -(-width // tile)
    return down * (down + 1) // 2 if diagonal else down * across


def parts_of(units: int, slabs: int, processors: int) -> int:
    """Return the number of parts of the rows of every unit: the least that keeps all processors busy.

    Args:
        units: tiles of all folds.
        slabs: of one fold.
        processors: multiprocessors; each takes one item at a time.
    """

    def idle(parts: int) -> float:
        return -(-units * parts // processors) * processors / (units * parts)

    choices = range(1, max(1, slabs // PART) + 1)
    return next((parts for parts in choices if idle(parts) <= 1.1), min(choices, key=idle))


class Launches:
    """The launches of one call, and what they share.

    16-bit rows about an origin have more than 16 bits, but the sum of two 16-bit numbers holds them all (``rows.cuh``).
    The high number takes the place of the row. The low numbers of the moved columns are a block of their own.

    Args:
        library: ``fastprobe._cuda``.
        blocks: see :func:`fastprobe.ops.gram.gram_`.
        pairs: the same.
        fold: the same, N > 0.
        exact: the same.
    """

    def __init__(self, library: Any, blocks: Sequence[Block], pairs: Sequence[Pair], fold: Tensor, exact: bool):
        self._library, self._pairs, self._fold = library, pairs, fold
        self._rows = [block.rows for block in blocks]
        self._folds = folds = min(lengths_by_fold(blocks, pairs), default=1)
        self._exact = exact = in_float64(blocks, exact)
        slabs = slabs_of(fold, folds)
        self._index, self._fold_slabs = slabs.row, slabs.first
        self._slabs = max(1, len(fold) // SLAB // folds)  # of one fold, approximately
        self._processors = torch.cuda.get_device_properties(fold.device).multi_processor_count
        self._where = {"device": fold.device.index or 0, "stream": torch.cuda.current_stream(fold.device).cuda_stream}
        self._moved = {b: columns for b, block in enumerate(blocks) if len(columns := moved_by(block.origin).columns)}
        self._origins = {b: blocks[b].origin.double().contiguous() for b in self._moved}
        self._is_gathered = torch.zeros(1, dtype=torch.int32, device=fold.device)
        self._gathered: list[Tensor] = []
        self._low: dict[int, int] = {}  # block -> the block that holds its low plane
        if not exact:
            # Memory for them is always taken: only the device knows whether rows of a single fold are left out.
            if folds > 1 or self._moved or not all(map(fits_the_copy_engine, self._rows)):
                self._is_gathered.fill_(1)
            else:
                self._is_gathered = (fold < 0).any().int()
            self._gathered = [self._room(block.shape[1]) for block in self._rows]

    def read(self, i: int, total: Tensor | None, square: Tensor | None) -> None:
        """Gather the rows of block ``i`` where the products need that, and add its sums and squares."""
        wanted, width = total is not None or square is not None, self._rows[i].shape[1]
        parts = max(1, min(8 * self._processors // (-(-width // 32) * self._folds), self._slabs // 2))
        by_part = self._fold.new_empty(self._folds, parts, 2, width if wanted else 0, dtype=torch.float64)
        if wanted or not self._exact:
            self._read(i, parts, None, None if self._exact else self._gathered[i], by_part if wanted else None)
        for kind, out in enumerate((total, square)):
            if out is not None:
                out[: self._folds].add_(by_part[:, :, kind].sum(1))
        if i in self._moved and not self._exact:
            low = self._room(len(self._moved[i]))
            self._read(i, parts, self._moved[i], low, None)
            self._low[i] = len(self._gathered)
            self._gathered.append(low)

    def _read(self, i: int, parts: int, low: Tensor | None, gathered: Tensor | None, sums: Tensor | None) -> None:
        """Launch over the rows of a block, or over the low plane of some of its columns."""
        self._library.rows(
            block=self._any_rows(i),
            columns=address_of(low),
            width=self._rows[i].shape[1] if low is None else len(low),
            index=self._index.data_ptr(),
            fold_slabs=self._fold_slabs.data_ptr(),
            folds=self._folds,
            splits=parts,
            is_gathered=self._is_gathered.data_ptr(),
            gathered=address_of(gathered),
            gathered_stride=0 if gathered is None else gathered.stride(0),
            low=low is not None,
            sums=address_of(sums),
            **self._where,
        )

    def multiply(self) -> None:
        """Add the products of all pairs, plane by plane where a block has two."""
        products = list(self._pairs)
        rest: list[Callable[[], Any]] = []  # adds products of low planes to some rows or columns of a gram, at the end

        def product(gram: Tensor, left: int, right: int, height: int, width: int) -> Tensor:
            part = gram.new_zeros(len(gram), height, width)
            products.append(Pair(left, right, part))
            return part

        for i, j, gram in self._pairs:
            down, across = (self._moved.get(k) if k in self._low else None for k in (i, j))
            if down is not None:
                part = product(gram, self._low[i], j, len(down), gram.shape[2])
                rest.append(partial(gram.index_add_, 1, down, part))
                if i == j:
                    rest.append(partial(gram.index_add_, 2, down, part.mT))
            if across is not None and i != j:
                part = product(gram, i, self._low[j], gram.shape[1], len(across))
                rest.append(partial(gram.index_add_, 2, across, part))
            if down is not None and across is not None:
                part = product(gram, self._low[i], self._low[j], len(down), len(across))
                rest.append(partial(_add_at, gram, down, across, part))

        products.sort(key=lambda pair: len(pair.gram) > 1)  # of all folds together first: they take longest
        for start in range(0, len(products), PAIRS):
            self._launch(products[start : start + PAIRS])
        for add in rest:
            add()

    def _launch(self, products: Sequence[Pair]) -> None:
        used = sorted({block for pair in products for block in pair[:2]})
        tile, pairs, items = EXACT_TILE if self._exact else TILE, [], []
        for i, j, gram in products:
            folds = 1 if len(gram) == 1 else self._folds
            # One matrix of all folds is divided into as many parts more (plan.h), so that items are equally long.
            items.append((self._folds * tiles_of(gram.shape[1], gram.shape[2], i == j, tile), self._folds // folds))
            pairs.append((used.index(i), used.index(j), *gram.shape[1:], gram.data_ptr(), *gram.stride()[:2], folds))
        splits = parts_of(sum(count for count, _ in items), self._slabs, self._processors)
        written = sum(count * splits for count, more in items if splits * more > 1)
        parts = self._fold.new_empty(written * tile * tile, dtype=torch.float64)
        plan = {
            "pairs": pairs,
            "splits": splits,
            "folds": self._folds,
            "fold_slabs": self._fold_slabs.data_ptr(),
            "workspace": parts.data_ptr(),
        }
        if self._exact:
            blocks = [self._any_rows(i) for i in used]
            self._library.gram_exact(blocks=blocks, index=self._index.data_ptr(), **plan, **self._where)
        else:
            self._library.gram(
                blocks=[self._block(i) for i in used],
                bfloat16=self._rows[0].dtype == torch.bfloat16,
                n=len(self._fold),
                positions=len(self._index),
                is_gathered=self._is_gathered.data_ptr(),
                **plan,
                **self._where,
            )

    def _room(self, width: int) -> Tensor:
        """Return memory for gathered rows, each at a multiple of 16 bytes."""
        return self._fold.new_empty(len(self._index), -(-width // 8) * 8, dtype=torch.int16)

    def _any_rows(self, i: int) -> tuple[int, int, int, int, int, int]:
        block, origin = self._rows[i], address_of(self._origins.get(i))
        return block.data_ptr(), block.stride(0), block.stride(1), block.shape[1], DTYPES[block.dtype], origin

    def _block(self, i: int) -> tuple[int, int, int, int, int]:
        gathered = self._gathered[i].data_ptr(), self._gathered[i].stride(0)
        if i >= len(self._rows):  # a low plane
            (width,) = (len(self._moved[of]) for of, low in self._low.items() if low == i)
            return 0, 0, *gathered, width
        block = self._rows[i]
        address = block.data_ptr() if fits_the_copy_engine(block) else 0
        return address, block.stride(0), *gathered, block.shape[1]


def fits_the_copy_engine(block: Tensor) -> bool:
    """Return whether columns are adjacent and 16-bit rows begin at multiples of 16 bytes without overlap."""
    row, column = block.stride()
    return column == 1 and row >= block.shape[1] and row % 8 == 0 and row < 2**39 and block.data_ptr() % 16 == 0


def _add_at(gram: Tensor, down: Tensor, across: Tensor, part: Tensor) -> None:
    """Add a matrix to the elements of some rows and columns."""
    gram[:, down.long()[:, None], across.long()] += part
