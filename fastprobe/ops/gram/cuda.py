"""How ``gram_`` runs on the kernels in CUDA C++.

Nothing on the way to a launch waits for the device, and all memory comes from torch, so a CUDA graph may capture it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from fastprobe.kernels._slots import slots_of
from fastprobe.ops.gram.call import GramCall

INTERFACE = 1
"""What this Python calls; the same number in ``csrc/cuda/module.cpp``. It goes up when a call there changes."""

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
"""What the kernels read, by the number ``csrc/cuda/rows.cuh`` gives it."""

SLAB = 128
"""Rows of one fold that are added up in the tensor core."""

TILE, EXACT_TILE = 128, 64
"""Columns of the two blocks that one item of work multiplies, on wgmma and in float64."""

PAIRS = 32
"""What one launch takes: its arguments must stay below 32 KB."""

PART = 16
"""Slabs that a part of a fold's rows has at least: below them writing its sums takes as long as making them."""


@functools.cache
def library() -> Any:
    """``fastprobe._cuda``, or ``None`` where it was not built or not from these sources."""
    try:
        library = importlib.import_module("fastprobe._cuda")
    except ImportError:
        return None
    return library if getattr(library, "INTERFACE", 0) == INTERFACE else None


def gram_(call: GramCall) -> None:
    """Launch, on the current stream of the rows' device. Arguments are already checked."""
    if not len(call.fold):
        return
    with torch.cuda.device(call.fold.device):
        launches = _Launches(call)
        for i, (total, square) in enumerate(zip(call.sums, call.squares, strict=True)):
            launches.read(i, total, square)
        launches.multiply(call.grams, call.pairs)


@dataclass(frozen=True)
class Slabs:
    """Rows in the order of their folds, each fold filled up to whole slabs."""

    row: Tensor  # (positions,) int32: the row at a position, -1 for none
    first: Tensor  # (folds + 1,) int32: the first slab of each fold, and the end of the last


def slabs_of(fold: Tensor, folds: int) -> Slabs:
    """Where each row goes. Shapes follow from the shapes of the arguments alone: nothing waits for the device.

    Args:
        fold: ``(N,)`` int64, N > 0; rows of a negative fold are left out.
        folds: how many there are; a single one takes the rows of all.
    """
    slots = slots_of(fold.clamp(max=folds - 1), folds, SLAB)
    place = slots.start[:, None] + torch.arange(SLAB, device=fold.device)
    row = torch.where(place < slots.end[:, None], slots.order[place.clamp(max=len(fold) - 1)], -1)
    return Slabs(row.flatten().int(), torch.nn.functional.pad(slots.fold_end, (1, 0)).int())


def tiles_of(height: int, width: int, diagonal: bool, tile: int) -> int:
    """How many tiles a gram has; of a block with itself on and above the diagonal only."""
    down, across = -(-height // tile), -(-width // tile)
    return down * (down + 1) // 2 if diagonal else down * across


def parts_of(units: int, slabs: int, processors: int) -> int:
    """Into how many parts the rows of every unit are split: few, yet so many that no processor waits for long.

    Args:
        units: tiles of all folds.
        slabs: of one fold.
        processors: multiprocessors; each takes one item at a time.
    """

    def idle(parts: int) -> float:
        return -(-units * parts // processors) * processors / (units * parts)

    choices = range(1, max(1, slabs // PART) + 1)
    return next((parts for parts in choices if idle(parts) <= 1.1), min(choices, key=idle))


@dataclass(frozen=True)
class Moved:
    """What an origin moves."""

    columns: Tensor  # int32, on the device: where it is not zero
    fits: frozenset[torch.dtype]  # 16-bit dtypes that have its numbers
    version: int


_moved: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def moved_by(origin: Tensor) -> Moved:
    """Asked of the device once a tensor, and again when it has changed: asking waits for the answer."""
    known = _moved.get(origin)
    if known is None or known.version != origin._version:
        fits = [dtype for dtype in (torch.bfloat16, torch.float16) if bool((origin.to(dtype) == origin).all())]
        known = _moved[origin] = Moved(origin.nonzero().flatten().int(), frozenset(fits), origin._version)
    return known


class _Launches:
    """The launches of one call, and what they have in common.

    16-bit rows about an origin have more than 16 bits, but the sum of two 16-bit numbers has them all (``rows.cuh``).
    The high one takes the place of the rows, the low one of the columns that move is a block of its own.
    """

    def __init__(self, call: GramCall):
        rows, fold, folds, origins, exact = call.rows, call.fold, call.folds, call.origins, call.in_float64
        self._rows, self._fold, self._folds, self._weight, self._exact = rows, fold, folds, call.weight, exact
        slabs = slabs_of(fold, folds)
        self._index, self._fold_slabs = slabs.row, slabs.first
        self._slabs = max(1, len(fold) // SLAB // folds)  # of one fold, about
        self._processors = torch.cuda.get_device_properties(fold.device).multi_processor_count
        self._where = {"device": torch.cuda.current_device(), "stream": torch.cuda.current_stream().cuda_stream}
        self._moved = {i: columns for i, o in enumerate(origins) if len(columns := moved_by(o).columns)}
        self._origins = {i: origins[i].double().contiguous() for i in self._moved}
        self._is_gathered = torch.zeros(1, dtype=torch.int32, device=fold.device)
        self._gathered: list[Tensor] = []
        self._low: dict[int, int] = {}  # where the low plane of a block is
        if not exact:
            # Memory for them is taken in any case: of a single fold only the device knows whether there are gaps.
            if folds > 1 or self._moved or not all(_fits_the_copy_engine(block) for block in rows):
                self._is_gathered.fill_(1)
            else:
                self._is_gathered = (fold < 0).any().int()
            self._gathered = [self._room(block.shape[1]) for block in rows]

    def read(self, i: int, total: Tensor | None, square: Tensor | None) -> None:
        """Gather the rows of a block where that is to be, and add up what is asked for."""
        wanted, width = total is not None or square is not None, self._rows[i].shape[1]
        parts = max(1, min(8 * self._processors // (-(-width // 32) * self._folds), self._slabs // 2))
        by_part = self._fold.new_empty(self._folds, parts, 2, width if wanted else 0, dtype=torch.float64)
        if wanted or not self._exact:
            self._read(i, parts, None, None if self._exact else self._gathered[i], by_part if wanted else None)
        for kind, out in enumerate((total, square)):
            if out is not None:
                out[: self._folds].add_(by_part[:, :, kind].sum(1), alpha=self._weight)
        if i in self._moved and not self._exact:
            low = self._room(len(self._moved[i]))
            self._read(i, parts, self._moved[i], low, None)
            self._low[i] = len(self._gathered)
            self._gathered.append(low)

    def _read(self, i: int, parts: int, low: Tensor | None, gathered: Tensor | None, sums: Tensor | None) -> None:
        """One launch over the rows of a block, or over the low plane of some of its columns."""
        library().rows(
            block=self._any_rows(i),
            columns=_address(low),
            width=self._rows[i].shape[1] if low is None else len(low),
            index=self._index.data_ptr(),
            fold_slabs=self._fold_slabs.data_ptr(),
            folds=self._folds,
            splits=parts,
            is_gathered=self._is_gathered.data_ptr(),
            gathered=_address(gathered),
            gathered_stride=0 if gathered is None else gathered.stride(0),
            low=low is not None,
            sums=_address(sums),
            **self._where,
        )

    def multiply(self, grams: Sequence[Tensor], pairs: Sequence[tuple[int, int]]) -> None:
        """Add the products of all pairs, plane by plane where there are two."""
        products = list(zip(grams, pairs, strict=True))
        rest: list[Callable[[], Any]] = []  # products of a low plane go to some rows or columns of a gram, afterwards

        def product(gram: Tensor, left: int, right: int, height: int, width: int) -> Tensor:
            part = gram.new_zeros(len(gram), height, width)
            products.append((part, (left, right)))
            return part

        for gram, (i, j) in zip(grams, pairs, strict=True):
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

        products.sort(key=lambda product: len(product[0]) > 1)  # of all folds together first: they take longest
        for start in range(0, len(products), PAIRS):
            self._launch(products[start : start + PAIRS])
        for add in rest:
            add()

    def _launch(self, products: Sequence[tuple[Tensor, tuple[int, int]]]) -> None:
        used = sorted({i for _, pair in products for i in pair})
        tile, units, pairs = EXACT_TILE if self._exact else TILE, 0, []
        for gram, (i, j) in products:
            folds = 1 if len(gram) == 1 else self._folds
            units += folds * tiles_of(gram.shape[1], gram.shape[2], i == j, tile)
            pairs.append((used.index(i), used.index(j), *gram.shape[1:], gram.data_ptr(), *gram.stride()[:2], folds))
        splits = parts_of(units, self._slabs, self._processors)
        parts = self._fold.new_empty(units * splits * tile * tile if splits > 1 else 0, dtype=torch.float64)
        plan = {
            "pairs": pairs,
            "splits": splits,
            "folds": self._folds,
            "fold_slabs": self._fold_slabs.data_ptr(),
            "workspace": parts.data_ptr(),
            "weight": self._weight,
        }
        if self._exact:
            blocks = [self._any_rows(i) for i in used]
            library().gram_exact(blocks=blocks, index=self._index.data_ptr(), **plan, **self._where)
        else:
            library().gram(
                blocks=[self._block(i) for i in used],
                bfloat16=self._rows[0].dtype == torch.bfloat16,
                n=len(self._fold),
                positions=len(self._index),
                is_gathered=self._is_gathered.data_ptr(),
                **plan,
                **self._where,
            )

    def _room(self, width: int) -> Tensor:
        """Memory for gathered rows, each at a multiple of 16 bytes."""
        return self._fold.new_empty(len(self._index), -(-width // 8) * 8, dtype=torch.int16)

    def _any_rows(self, i: int) -> tuple[int, int, int, int, int, int]:
        block, origin = self._rows[i], _address(self._origins.get(i))
        return block.data_ptr(), block.stride(0), block.stride(1), block.shape[1], DTYPES[block.dtype], origin

    def _block(self, i: int) -> tuple[int, int, int, int, int]:
        gathered = self._gathered[i].data_ptr(), self._gathered[i].stride(0)
        if i >= len(self._rows):  # a low plane
            (width,) = (len(self._moved[of]) for of, low in self._low.items() if low == i)
            return 0, 0, *gathered, width
        block = self._rows[i]
        address = block.data_ptr() if _fits_the_copy_engine(block) else 0
        return address, block.stride(0), *gathered, block.shape[1]


def _fits_the_copy_engine(block: Tensor) -> bool:
    """Columns side by side, 16-bit rows that begin at multiples of 16 bytes and do not overlap."""
    row, column = block.stride()
    return column == 1 and row >= block.shape[1] and row % 8 == 0 and row < 2**39 and block.data_ptr() % 16 == 0


def _add_at(gram: Tensor, down: Tensor, across: Tensor, part: Tensor) -> None:
    """Add to the elements of some rows and columns, each once."""
    gram[:, down.long()[:, None], across.long()] += part


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
