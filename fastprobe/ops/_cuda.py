"""The kernels in CUDA C++: whether they were built, what they take, and how ``gram_`` runs on them.

Nothing on the way to a launch waits for the device, and all memory comes from torch, so a CUDA graph may capture it.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

HOW_TO_BUILD = (
    "with nvcc, `FASTPROBE_BUILD=cuda pip install --force-reinstall --no-deps --editable .` in the checkout builds it"
)

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

GATE = {False: 1e-6, True: 1e-12}
"""Largest error of a trial, of the size of its columns: on wgmma, and in float64."""


@functools.cache
def library() -> Any:
    """``fastprobe._cuda``, or ``None`` where it was not built or not from these sources."""
    try:
        library = importlib.import_module("fastprobe._cuda")
    except ImportError:
        return None
    return library if getattr(library, "INTERFACE", 0) == INTERFACE else None


# -- what the kernels take ---------------------------------------------------------------------------------------------


def gram_refuses(
    grams: Sequence[Tensor],
    sums: Sequence[Tensor | None],
    squares: Sequence[Tensor | None],
    rows: Sequence[Tensor],
    fold: Tensor,
    origins: Sequence[Tensor],
    exact: bool,
) -> str | None:
    """Why these arguments are not for the CUDA kernels, or ``None``."""
    totals = [total for total in (*sums, *squares) if total is not None]
    if reason := _not_on_one_gpu([fold, *grams, *totals, *rows, *origins]):
        return reason
    if library() is None:
        return f"fastprobe._cuda was not built; {HOW_TO_BUILD}"
    if len(fold) + SLAB * (len(grams) + 1) >= 2**31:
        return f"{len(fold)} rows are more than 32-bit coordinates reach"
    if not all(block.shape[1] for block in rows):
        return "a block of rows has no columns"
    if exact and (strange := {block.dtype for block in rows} - DTYPES.keys()):
        return f"{str(strange.pop()).removeprefix('torch.')} rows are not for the CUDA kernels"
    if any(gram.stride(2) != 1 for gram in grams):
        return "the columns of a gram do not lie side by side"
    if not exact and (reason := _not_for_wgmma(rows, origins)):
        return reason
    return _cannot_run(fold.device, exact)


def _not_on_one_gpu(tensors: Sequence[Tensor]) -> str | None:
    device = tensors[0].device
    if device.type != "cuda":
        return f"a tensor is on {device}, not on a GPU"
    elsewhere = [tensor.device for tensor in tensors if tensor.device != device]
    return f"tensors are on {device} and on {elsewhere[0]}" if elsewhere else None


def _not_for_wgmma(rows: Sequence[Tensor], origins: Sequence[Tensor]) -> str | None:
    dtypes = {block.dtype for block in rows}
    if len(dtypes) > 1 or not dtypes <= {torch.bfloat16, torch.float16}:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return f"it takes bfloat16 rows or float16 rows, not {names} (exact=True takes any, in float64)"
    if any(_moves(origin) for origin in origins):
        return "rows about an origin have more digits than 16 bits hold (exact=True takes them, in float64)"
    return None


_moving: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _moves(origin: Tensor) -> bool:
    """Whether an origin is not zero: asked of the device once a tensor, as asking waits for it."""
    known = _moving.get(origin)
    if known is None or known[0] != origin._version:
        known = _moving[origin] = (origin._version, bool(origin.any()))
    return known[1]


@functools.cache
def _cannot_run(device: torch.device, exact: bool) -> str | None:
    """Why this build does not run on this device, or ``None``; once a device and kernel it is tried against torch."""
    capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
    built = library().ARCHITECTURES.split(",")
    if not exact and capability != "9.0":
        return f"wgmma is for compute capability 9.0; {device} has {capability}"
    if capability not in (name.rstrip("a") for name in built):
        return f"fastprobe._cuda was built for {', '.join(built)}; {device} has {capability}"
    error = _error_of_a_trial(device, exact)
    return None if error <= GATE[exact] else f"on {device} its sums differ from torch's by {error:.1e} of their size"


def _error_of_a_trial(device: torch.device, exact: bool) -> float:
    """The largest error, over the size of its columns, of x^T y and y^T y of random rows in two folds."""
    generator = torch.Generator(device).manual_seed(0)
    n, widths = 1000, (200, 72)
    rows = [torch.randn(n, width, device=device, generator=generator).bfloat16() for width in widths]
    fold = torch.arange(n, device=device) % 3 - 1
    pairs = [(0, 1), (1, 1)]
    grams = [torch.zeros(2, widths[i], widths[j], dtype=torch.float64, device=device) for i, j in pairs]
    origins = [torch.zeros(width, dtype=torch.float64, device=device) for width in widths]
    gram_(grams, [None] * 2, [None] * 2, rows, pairs, fold, origins, 1.0, exact)
    errors = []
    for gram, (i, j) in zip(grams, pairs, strict=True):
        for f in range(2):
            x, y = rows[i][fold == f].double(), rows[j][fold == f].double()
            off = gram[f] - x.mT @ y
            size = torch.outer(torch.linalg.vector_norm(x, dim=0), torch.linalg.vector_norm(y, dim=0))
            errors.append(float(((off.triu() if i == j else off).abs() / size).nan_to_num(nan=1.0).max()))
    return max(errors)


# -- the launch -------------------------------------------------------------------------------------------------------


def gram_(
    grams: Sequence[Tensor],
    sums: Sequence[Tensor | None],
    squares: Sequence[Tensor | None],
    rows: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]],
    fold: Tensor,
    origins: Sequence[Tensor],
    weight: float,
    exact: bool,
) -> None:
    """Launch, on the current stream of the rows' device; arguments as those of ``fastprobe.ops.gram_``, checked."""
    if not len(fold):
        return
    with torch.cuda.device(fold.device):
        call = _Call(rows, origins, fold, folds_of(grams, sums, squares), weight, exact)
        for i, (total, square) in enumerate(zip(sums, squares, strict=True)):
            call.sum_rows(i, total, square)
        # Grams of all folds together first: their items take longest.
        products = sorted(zip(grams, pairs, strict=True), key=lambda product: len(product[0]) > 1)
        for start in range(0, len(products), PAIRS):
            call.multiply(products[start : start + PAIRS])


def folds_of(grams: Sequence[Tensor], sums: Sequence[Tensor | None], squares: Sequence[Tensor | None]) -> int:
    """How many folds there can be: as many as the shortest list of sums by fold has places."""
    by_fold = [t for t in (*sums, *squares) if t is not None] + [gram for gram in grams if len(gram) > 1]
    return min((len(t) for t in by_fold), default=1)


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
    n, device = len(fold), fold.device
    key = torch.where(fold < 0, folds, fold.clamp(max=folds - 1))
    key, order = key.to(torch.uint8 if folds < 256 else torch.int32).sort(stable=True)  # 8 bits: one pass of the sort
    first = torch.searchsorted(key.int(), torch.arange(folds + 1, device=device, dtype=torch.int32))
    counts = first.diff()
    fold_slabs = torch.nn.functional.pad(((counts + SLAB - 1) // SLAB).cumsum(0), (1, 0))
    position = torch.arange(SLAB * (-(-n // SLAB) + folds), device=device)
    owner = torch.searchsorted(fold_slabs[1:], position // SLAB, right=True).clamp(max=folds - 1)
    within = position - SLAB * fold_slabs[owner]
    row = order[(first[owner] + within).clamp(max=n - 1)]
    return Slabs(torch.where(within < counts[owner], row, -1).int(), fold_slabs.int())


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


class _Call:
    """What the launches of one call have in common."""

    def __init__(
        self,
        rows: Sequence[Tensor],
        origins: Sequence[Tensor],
        fold: Tensor,
        folds: int,
        weight: float,
        exact: bool,
    ):
        self._rows, self._fold, self._folds, self._weight, self._exact = rows, fold, folds, weight, exact
        slabs = slabs_of(fold, folds)
        self._index, self._fold_slabs = slabs.row, slabs.first
        self._slabs = max(1, len(fold) // SLAB // folds)  # of one fold, about
        self._processors = torch.cuda.get_device_properties(fold.device).multi_processor_count
        self._where = {"device": fold.device.index, "stream": torch.cuda.current_stream().cuda_stream}
        self._origins = [origin.double().contiguous() for origin in origins] if exact else []
        self._gathered: list[Tensor] = []
        self._is_gathered = torch.zeros(1, dtype=torch.int32, device=fold.device)
        if not exact:
            # Memory for them is taken in any case: of a single fold only the device knows whether there are gaps.
            if folds > 1 or not all(_fits_the_copy_engine(block) for block in rows):
                self._is_gathered.fill_(1)
            else:
                self._is_gathered = (fold < 0).any().int()
            self._gathered = [b.new_empty(len(self._index), -(-b.shape[1] // 8) * 8) for b in rows]

    def sum_rows(self, i: int, total: Tensor | None, square: Tensor | None) -> None:
        """Gather the rows of a block where that is to be, and add up what is asked for."""
        wanted = total is not None or square is not None
        if self._exact and not wanted:
            return
        block = self._rows[i]
        groups = -(-block.shape[1] // 32) * self._folds
        parts = max(1, min(8 * self._processors // groups, self._slabs // 2))
        partial = block.new_empty(self._folds, parts, 2, block.shape[1] if wanted else 0, dtype=torch.float64)
        library().rows(
            block=self._any_rows(i),
            index=self._index.data_ptr(),
            fold_slabs=self._fold_slabs.data_ptr(),
            folds=self._folds,
            splits=parts,
            is_gathered=self._is_gathered.data_ptr(),
            gathered=0 if self._exact else self._gathered[i].data_ptr(),
            gathered_stride=0 if self._exact else self._gathered[i].stride(0),
            sums=partial.data_ptr() if wanted else 0,
            **self._where,
        )
        for kind, out in enumerate((total, square)):
            if out is not None:
                out[: self._folds].add_(partial[:, :, kind].sum(1), alpha=self._weight)

    def multiply(self, products: Sequence[tuple[Tensor, tuple[int, int]]]) -> None:
        """Add the products of some pairs of blocks to their grams."""
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
                bfloat16=self._rows[used[0]].dtype == torch.bfloat16,
                n=len(self._fold),
                positions=len(self._index),
                is_gathered=self._is_gathered.data_ptr(),
                **plan,
                **self._where,
            )

    def _any_rows(self, i: int) -> tuple[int, int, int, int, int, int]:
        block = self._rows[i]
        origin = self._origins[i].data_ptr() if self._exact else 0
        return block.data_ptr(), block.stride(0), block.stride(1), block.shape[1], DTYPES[block.dtype], origin

    def _block(self, i: int) -> tuple[int, int, int, int, int]:
        block, gathered = self._rows[i], self._gathered[i]
        address = block.data_ptr() if _fits_the_copy_engine(block) else 0
        return address, block.stride(0), gathered.data_ptr(), gathered.stride(0), block.shape[1]


def _fits_the_copy_engine(block: Tensor) -> bool:
    """Columns side by side, 16-bit rows that begin at multiples of 16 bytes and do not overlap."""
    row, column = block.stride()
    return column == 1 and row >= block.shape[1] and row % 8 == 0 and row < 2**39 and block.data_ptr() % 16 == 0
