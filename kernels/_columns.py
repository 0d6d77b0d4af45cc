"""Sums of columns and their bfloat16 planes, computed before the columns are multiplied.

Layout     a panel is BLOCK_D columns of one block, a slot some rows of one fold (``_slots.py``). Planes are written in
           the order of the slots, so that the rows of a slot are adjacent.
Work       PARTS programs a panel and slot. Rows are read once, and only if sums or planes of them are wanted.
Precision  z = x - origin in float32; sums and squares in float64; the planes of z are exact (``_planes.py``).
Floor      N D reads of x; for float32 rows, and for 16-bit rows about an origin, 3 N D bfloat16 writes; for other
           16-bit rows that are not adjacent N D writes.

This kernel has never run on a GPU; tests run it in Triton's interpreter.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from fastprobe.kernels._planes import to_bfloat16

BFLOAT16 = tl.constexpr(0)
FLOAT16 = tl.constexpr(1)
FLOAT32 = tl.constexpr(2)

NATIVE = tl.constexpr(8)
"""Flag in the form of a panel: its rows are 16-bit numbers about zero, which can be multiplied without planes.

The form of a panel in a slot is the number of its planes that were written, plus its flags. It is 3 for float32 rows,
8 for adjacent bfloat16 rows about zero, 24 for others, and 2 for float16 rows beside blocks of other dtypes. Fewer
planes are counted where the last ones are zero.
"""

COPIED = tl.constexpr(16)
"""Flag in the form of a panel that is ``NATIVE``: its rows are not adjacent, and a copy of them is its first plane."""

FIELDS = tl.constexpr(8)
"""Numbers of a ``Record``."""


class Record(NamedTuple):
    """A block in the table of int64 numbers. Kernels read the fields at the places below."""

    address: int  # of rows at multiples of 16 bytes, with adjacent columns, and zeros to a multiple of 8
    stride: int
    width: int
    dtype: int
    planed: int  # 1: its planes are always needed
    origin: int  # address of (width,) float64
    sums: int  # address of (folds, width) float64, or 0
    squares: int  # the same


STRIDE = tl.constexpr(1)
WIDTH = tl.constexpr(2)
DTYPE = tl.constexpr(3)
PLANED = tl.constexpr(4)
ORIGIN = tl.constexpr(5)
SUMS = tl.constexpr(6)
SQUARES = tl.constexpr(7)


@triton.jit
def first_row(order_ptr, start, end):
    """Return the first row of a slot, and whether its rows are adjacent. Rows of a fold are in ascending order."""
    first, last = tl.load(order_ptr + start), tl.load(order_ptr + end - 1)
    return first, last - first == end - 1 - start


@triton.jit(do_not_specialize=["N", "S", "PLANES", "PARTS"])
def columns_kernel(
    table_ptr,  # int64: a Record each
    panels_ptr,  # (panels, 2) int32: block, first column
    order_ptr,  # (N,) int64
    start_ptr,  # (S,) int64
    end_ptr,  # (S,) int64
    any_origin_ptr,  # () bool: a block has an origin that is not zero
    planes_ptr,  # (panels, PLANES, N, BLOCK_D) bfloat16
    forms_ptr,  # (panels, S) int32, zeros at first: see NATIVE
    tallies_ptr,  # (panels, S, PARTS, 2, BLOCK_D) float64: sums, squares
    N,
    S,
    PLANES,  # of a panel in memory: 3, or 1 if no panel can need more
    PARTS,
    DTYPE_HERE: tl.constexpr,  # programs of other blocks do nothing
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    panel, slot, part = tl.program_id(0), tl.program_id(1) // PARTS, tl.program_id(1) % PARTS
    block = tl.load(panels_ptr + 2 * panel)
    record = table_ptr + FIELDS * block
    if tl.load(record + DTYPE) != DTYPE_HERE:
        return
    start, end = tl.load(start_ptr + slot), tl.load(end_ptr + slot)
    if start >= end:
        return

    d = tl.load(panels_ptr + 2 * panel + 1) + tl.arange(0, BLOCK_D)
    inside = d < tl.load(record + WIDTH)
    origin_ptr = tl.load(record + ORIGIN).to(tl.pointer_type(tl.float64))
    origin = tl.load(origin_ptr + d, mask=inside, other=0.0).to(tl.float32)
    near = tl.max(tl.abs(origin), 0) == 0
    planed = (tl.load(record + PLANED) != 0) | (near == 0) | (DTYPE_HERE == FLOAT32)
    if DTYPE_HERE == FLOAT16:  # a product with a panel about an origin takes bfloat16 planes
        planed = planed | tl.load(any_origin_ptr).to(tl.int1)
    first, adjacent = first_row(order_ptr, start, end)
    copied = (planed | adjacent) == 0
    tallied = (tl.load(record + SUMS) != 0) | (tl.load(record + SQUARES) != 0)
    form = tl.where(planed, 0, NATIVE) + tl.where(copied, COPIED, 0)

    if planed | tallied | copied:
        if DTYPE_HERE == BFLOAT16:
            base = tl.load(record).to(tl.pointer_type(tl.bfloat16))
        elif DTYPE_HERE == FLOAT16:
            base = tl.load(record).to(tl.pointer_type(tl.float16))
        else:
            base = tl.load(record).to(tl.pointer_type(tl.float32))
        base = tl.multiple_of(base, 16)
        stride = tl.multiple_of(tl.load(record + STRIDE), 8)
        column = tl.arange(0, BLOCK_D)
        out = planes_ptr + panel.to(tl.int64) * PLANES * N * BLOCK_D + column[None, :]
        plane = N.to(tl.int64) * BLOCK_D
        sums = tl.zeros((ROWS, BLOCK_D), dtype=tl.float64)
        squares = tl.zeros((ROWS, BLOCK_D), dtype=tl.float64)
        second = tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)
        third = tl.zeros((ROWS, BLOCK_D), dtype=tl.float32)
        length = tl.cdiv(tl.cdiv(end - start, ROWS), PARTS) * ROWS
        begin = start + part * length
        end = tl.minimum(end, begin + length)
        for n in range(begin, end, ROWS):
            place = n + tl.arange(0, ROWS)
            row = place - start + first
            if adjacent == 0:
                row = tl.load(order_ptr + place, mask=place < end, other=0)
            here = (place < end)[:, None] & inside[None, :]
            raw = tl.load(base + row[:, None] * stride + d[None, :], mask=here, other=0.0)
            x = raw.to(tl.float32)
            z = tl.where(here, x - origin[None, :], 0.0)
            at = out + place[:, None] * BLOCK_D
            written = (place < end)[:, None]
            if copied:
                if DTYPE_HERE == FLOAT16:
                    tl.store(at, raw.to(tl.bfloat16, bitcast=True), mask=written)
                if DTYPE_HERE == BFLOAT16:
                    tl.store(at, raw, mask=written)
            wide = z.to(tl.float64)
            sums += wide
            squares += wide * wide
            if planed:
                high = to_bfloat16(z)
                middle = to_bfloat16(z - high)
                low = z - high - middle
                tl.store(at, high.to(tl.bfloat16), mask=written)
                tl.store(at + plane, middle.to(tl.bfloat16), mask=written)
                tl.store(at + 2 * plane, low.to(tl.bfloat16), mask=written)
                second = tl.maximum(second, tl.abs(middle))
                third = tl.maximum(third, tl.abs(low))
        if planed:
            form += 1 + (tl.max(second) > 0).to(tl.int32) + (tl.max(third) > 0).to(tl.int32)
        tally = tallies_ptr + ((panel.to(tl.int64) * S + slot) * PARTS + part) * 2 * BLOCK_D + column
        tl.store(tally, tl.sum(sums, 0))
        tl.store(tally + BLOCK_D, tl.sum(squares, 0))
    tl.atomic_max(forms_ptr + panel * S + slot, form)  # the largest of all parts


@triton.jit(do_not_specialize=["S", "PARTS", "F"])
def add_columns_kernel(
    table_ptr,  # int64: a Record each
    panels_ptr,  # (panels, 2) int32
    fold_end_ptr,  # (F,) int64
    tallies_ptr,  # (panels, S, PARTS, 2, BLOCK_D) float64
    S,
    PARTS,
    F,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add the tallies of a panel, BLOCK_S at a time, to its block's sums and squares."""
    panel = tl.program_id(0)
    record = table_ptr + FIELDS * tl.load(panels_ptr + 2 * panel)
    column = tl.arange(0, BLOCK_D)
    d = tl.load(panels_ptr + 2 * panel + 1) + column
    width = tl.load(record + WIDTH)
    inside = d < width
    for which in tl.static_range(2):  # sums, squares
        address = tl.load(record + SUMS + which)
        if address != 0:
            out = address.to(tl.pointer_type(tl.float64)) + d
            tallies = tallies_ptr + panel.to(tl.int64) * S * PARTS * 2 * BLOCK_D + which * BLOCK_D + column
            first = tl.zeros((), dtype=tl.int64)
            for f in range(F):
                last = tl.load(fold_end_ptr + f) * PARTS
                total = tl.zeros((BLOCK_S, BLOCK_D), dtype=tl.float64)
                for start in range(first, last, BLOCK_S):
                    tally = start + tl.arange(0, BLOCK_S)
                    total += tl.load(
                        tallies[None, :] + tally[:, None] * 2 * BLOCK_D, mask=(tally < last)[:, None], other=0.0
                    )
                here = out + f * width
                tl.store(here, tl.load(here, mask=inside) + tl.sum(total, 0), mask=inside)
                first = last
