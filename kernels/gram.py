"""``gram_`` in Triton: products of column blocks, fold by fold, ``gram[f] += x_f^T y_f``.

Layout     blocks are (N, D_i) rows with adjacent columns. A panel is BLOCK_D of their columns, a tile the product of
           two panels. Rows are read in the order of their folds, which is computed on the device (``_slots.py``). The
           rows of a slot are adjacent, in the caller's memory or in a copy (``_columns.py``).
Work       one program a tile and slot; a slot is some thousand rows of one fold. Of x^T x only tiles on and above the
           diagonal are computed. Tiles of a slot run at the same time, so that its rows are read from the L2 cache. A
           second kernel adds the slots of a tile in order, without atomics: the same input gives the same bits.
Overlap    one loop of half chains, whose accumulator goes from one to the next; a chain is added to its sum under an
           ``if``. The compiler then keeps one product in flight and fetches num_stages ahead (tests/kernels). From 9.0
           on the copy engine fetches (descriptors), which also orders its writes before the products that read them.
Precision  16-bit products are exact in float32. The tensor core truncates as it adds, a bias that grows with the chain,
           so a chain is CHAIN rows. Chains are summed in float32 outside of it, and every FLUSH rows that sum is added
           to float64. Float32 rows, and 16-bit rows about an origin, are split into bfloat16 planes (``_columns.py``),
           with one product for each pair of planes that matters.
Floor      sum over tiles of 2 N BLOCK_D^2 FLOP times the products of their planes; N sum D_i reads.

This kernel has never run on a GPU. Tests run it in Triton's interpreter, compile it for three architectures, and run an
emulator of the tensor core on its chains (tests/kernels, tests/ops/gram/test_accumulation.py). How a call gets here:
fastprobe/ops/gram/__init__.py.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastprobe.kernels._columns import (
    COPIED,
    DTYPE,
    FIELDS,
    FLOAT16,
    NATIVE,
    STRIDE,
    WIDTH,
    Record,
    add_columns_kernel,
    columns_kernel,
    first_row,
)
from fastprobe.kernels._planes import CHAIN, ONE_LOAD, planes_of_product, products_of
from fastprobe.kernels._schedule import cut, multiprocessors, slot_length
from fastprobe.kernels._slots import slots_of
from fastprobe.kernels._table import table

Block = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Rows, origin, sum and square, as ``fastprobe.ops.gram.Block`` has them."""

Pair = tuple[int, int, Tensor]
"""Left block, right block and gram, as ``fastprobe.ops.gram.Pair`` has them."""

FLUSH = 2048
"""Rows that are summed in float32 before the sum is added to float64."""

WORKSPACE = 2**29
"""Bytes of sums between the first and the second kernel."""

PLANE_BYTES = 2**31
"""Bytes of planes in memory where a GPU has 32 GB; rows that need more are added part by part."""

PROGRAMS = 8
"""Programs of a multiprocessor that read columns at the same time, so that memory is never idle."""


@dataclass(frozen=True)
class GramConfig:
    """Sizes of the kernels' programs. Only ``plane_count`` changes results beyond rounding."""

    block_d: int = 128
    block_n: int = 64  # rows of one load, at most half a chain (_planes.py)
    chain: int = CHAIN
    flush: int = FLUSH
    plane_count: int = 3  # of float32 rows: 3 for all their bits, 2 for a preview with 16 bits at half the cost
    num_warps: int = 8
    num_stages: int = 4
    descriptors: bool = True  # rows are fetched by the copy engine, which GPUs have from 9.0 on

    def __post_init__(self):
        assert self.chain % self.block_n == 0
        assert self.chain >= 2 * self.block_n, ONE_LOAD
        assert self.flush % self.chain == 0


def configs(capability: tuple[int, int] | None) -> list[GramConfig]:
    """Return the configurations to try on a GPU of this compute capability, default first; ``None``: interpreter.

    They differ only in how far ahead rows are fetched, which changes no bit of a result. All have tiles of one width,
    because the width can change results: one column with an origin makes its whole panel consist of planes. The default
    was chosen by the registers and shared memory of the compiled kernels (tests/kernels), not by measurements.
    """
    if capability is None:
        return [GramConfig(block_d=64)]
    # From 10.0 on a tile of 128 columns needs more registers than a thread has.
    default = GramConfig(block_d=64, num_warps=4) if capability >= (10, 0) else GramConfig()
    if capability < (9, 0):
        default = replace(default, descriptors=False, num_stages=3)
    return [default, replace(default, num_stages=default.num_stages - 1)]


@triton.jit
def _panel(table_ptr, tile_ptr, forms_ptr, slot, S):
    """Return a panel of a tile: number, record of its block, first column, form (see ``NATIVE``), true if float16."""
    panel = tl.load(tile_ptr)
    record = table_ptr + FIELDS * tl.load(tile_ptr + 1)
    form = tl.load(forms_ptr + panel * S + slot)
    half = ((form & NATIVE) != 0) & (tl.load(record + DTYPE) == FLOAT16)
    return panel, record, tl.load(tile_ptr + 2), form, half


@triton.jit
def _operand(
    panel, record, column, form, first, start, planes_ptr, N, IN_MEMORY, HALF: tl.constexpr, MOST: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Return the operand of a panel: address of its first row, row stride, number of columns, number of planes."""
    # The alignment that _readable ensures, repeated for the compiler: without it every number is loaded by itself.
    stride = tl.multiple_of(tl.load(record + STRIDE), 8)
    address = tl.load(record) + 2 * (column + first * stride)  # 2 bytes a number
    width = tl.multiple_of((tl.load(record + WIDTH) + 7) // 8 * 8 - column, 8)
    in_place = ((form & NATIVE) != 0) & ((form & COPIED) == 0)
    planes = planes_ptr + (panel.to(tl.int64) * IN_MEMORY * N + start) * BLOCK_D
    count = tl.where((form & NATIVE) != 0, 1, tl.minimum(form & (NATIVE - 1), MOST))
    if HALF:
        rows = tl.multiple_of(address.to(tl.pointer_type(tl.float16)), 16)
        pointer = tl.where(in_place, rows, planes.to(tl.pointer_type(tl.float16), bitcast=True))
    else:
        rows = tl.multiple_of(address.to(tl.pointer_type(tl.bfloat16)), 16)
        pointer = tl.where(in_place, rows, planes)
    return pointer, tl.where(in_place, stride, BLOCK_D), tl.where(in_place, width, BLOCK_D), count


@triton.jit(do_not_specialize=["N", "S", "IN_MEMORY", "first_tile", "tiles"])
def products_kernel(
    table_ptr,  # int64: a Record each, then a pair each
    tiles_ptr,  # (T, 8) int32: left panel, its block, its first column, the same of the right one, pair, 0
    forms_ptr,  # (panels, S) int32: see NATIVE
    order_ptr,  # (N,) int64
    start_ptr,  # (S,) int64
    end_ptr,  # (S,) int64
    planes_ptr,  # (panels, IN_MEMORY, N, BLOCK_D) bfloat16
    partials_ptr,  # (S, tiles, BLOCK_D, BLOCK_D) float64
    N,
    S,
    IN_MEMORY,  # planes of a panel in memory
    first_tile,
    tiles,
    HALF: tl.constexpr,  # compute the tiles of float16 rows without planes, and no others
    OPERAND: tl.constexpr,  # dtype of the operands: float16 or bfloat16, and float32 in the interpreter
    PLANES: tl.constexpr,  # most planes of a number
    CHAIN: tl.constexpr,
    FLUSH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Compute the products of ``tiles`` tiles, from ``first_tile`` on, in every slot."""
    tile, slot = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    start, end = tl.load(start_ptr + slot), tl.load(end_ptr + slot)
    if start >= end:
        return
    tile_ptr = tiles_ptr + 8 * (first_tile + tile)
    panel, record, column, form, half = _panel(table_ptr, tile_ptr, forms_ptr, slot, S)
    panel_r, record_r, column_r, form_r, half_r = _panel(table_ptr, tile_ptr + 3, forms_ptr, slot, S)
    if (half & half_r) != HALF:
        return
    first, _ = first_row(order_ptr, start, end)
    left, stride, width, count = _operand(
        panel, record, column, form, first, start, planes_ptr, N, IN_MEMORY, HALF, PLANES, BLOCK_D
    )
    right, stride_r, width_r, count_r = _operand(
        panel_r, record_r, column_r, form_r, first, start, planes_ptr, N, IN_MEMORY, HALF, PLANES, BLOCK_D
    )

    of_first, of_second, of_third = products_of(count, count_r, PLANES)
    products = of_first + of_second + of_third
    plane = N.to(tl.int64) * BLOCK_D
    length = (end - start).to(tl.int32)

    d = tl.arange(0, BLOCK_D)
    here = partials_ptr + (slot.to(tl.int64) * tiles + tile) * BLOCK_D * BLOCK_D + d[:, None] * BLOCK_D + d[None, :]
    if DESCRIPTORS:  # outside of the shape, rows and columns are zeros
        x_rows = tl.make_tensor_descriptor(
            left, [PLANES, length, width.to(tl.int32)], [plane, stride, 1], [1, BLOCK_N, BLOCK_D]
        )
        y_rows = tl.make_tensor_descriptor(
            right, [PLANES, length, width_r.to(tl.int32)], [plane, stride_r, 1], [1, BLOCK_N, BLOCK_D]
        )
    inside, inside_r = (d < width)[None, :], (d < width_r)[None, :]
    PIECES: tl.constexpr = CHAIN // BLOCK_N
    total = tl.zeros((BLOCK_D, BLOCK_D), dtype=tl.float32)
    part = tl.zeros((BLOCK_D, BLOCK_D), dtype=tl.float32)
    steps = tl.cdiv(length, CHAIN) * products * PIECES
    # One loop, so that rows are fetched ahead across chains, planes and flushes.
    for step in range(steps):
        chain = step // PIECES // products
        product = step // PIECES - chain * products
        i, j = planes_of_product(product, of_first, of_second)
        row = chain * CHAIN + step % PIECES * BLOCK_N
        if DESCRIPTORS:
            x = x_rows.load([i, row, 0]).reshape([BLOCK_N, BLOCK_D])
            y = y_rows.load([j, row, 0]).reshape([BLOCK_N, BLOCK_D])
        else:
            n = row + tl.arange(0, BLOCK_N)
            wide = n[:, None].to(tl.int64)  # n times a stride may pass 2^31
            counts = (n < length)[:, None]
            x = tl.load(left + i * plane + wide * stride + d[None, :], mask=counts & inside, other=0.0)
            y = tl.load(right + j * plane + wide * stride_r + d[None, :], mask=counts & inside_r, other=0.0)
        part = tl.dot(tl.trans(x.to(OPERAND)), y.to(OPERAND), part)
        if step % PIECES == PIECES - 1:
            total += part
            part = tl.zeros((BLOCK_D, BLOCK_D), dtype=tl.float32)
            full = (chain % (FLUSH // CHAIN) == FLUSH // CHAIN - 1) & (product == products - 1)
            if full | (step == steps - 1):
                before = (d * 0 + chain)[:, None] >= FLUSH // CHAIN  # the interpreter does not take a scalar mask
                done = tl.load(here, mask=before, other=0.0)
                tl.store(here, done + total.to(tl.float64))
                total = tl.zeros((BLOCK_D, BLOCK_D), dtype=tl.float32)


@triton.jit(do_not_specialize=["pairs_at", "first_tile", "tiles", "F"])
def add_products_kernel(
    table_ptr,  # int64; at pairs_at address, fold stride and row stride of every pair's gram
    tiles_ptr,  # (T, 8) int32
    fold_end_ptr,  # (F,) int64
    partials_ptr,  # (S, tiles, BLOCK_D, BLOCK_D) float64
    pairs_at,
    first_tile,
    tiles,
    F,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add the slots of a tile, one after the other, to the gram of its pair: ROWS rows of the tile a program."""
    tile = tl.program_id(0)
    tile_ptr = tiles_ptr + 8 * (first_tile + tile)
    pair = table_ptr + pairs_at + 3 * tl.load(tile_ptr + 6)
    fold_stride, row_stride = tl.load(pair + 1), tl.load(pair + 2)
    r, c = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
    row, column = tl.load(tile_ptr + 2) + r, tl.load(tile_ptr + 5) + c
    height = tl.load(table_ptr + FIELDS * tl.load(tile_ptr + 1) + WIDTH)
    width = tl.load(table_ptr + FIELDS * tl.load(tile_ptr + 4) + WIDTH)
    inside = (row < height)[:, None] & (column < width)[None, :]
    gram = tl.load(pair).to(tl.pointer_type(tl.float64)) + row[:, None] * row_stride + column[None, :]
    partials = partials_ptr + tile.to(tl.int64) * BLOCK_D * BLOCK_D + r[:, None] * BLOCK_D + c[None, :]
    first = tl.zeros((), dtype=tl.int64)
    for f in range(F):
        last = tl.load(fold_end_ptr + f)
        if last > first:
            total = tl.zeros((ROWS, BLOCK_D), dtype=tl.float64)
            for slot in range(first, last):
                total += tl.load(partials + slot * tiles * BLOCK_D * BLOCK_D)
            here = gram + f * fold_stride
            tl.store(here, tl.load(here, mask=inside, other=0.0) + total, mask=inside)
        first = last


def launch_gram(
    blocks: Sequence[Block],
    pairs: Sequence[Pair],
    fold: Tensor,
    *,
    config: GramConfig = GramConfig(),
    zero_origins: bool = False,
) -> None:
    """Launch the kernels of ``gram_`` on the current stream. Arguments are already checked.

    After one call with the same widths, further calls copy nothing to the device and wait for nothing: a CUDA graph may
    capture them.

    Args:
        blocks: see :func:`fastprobe.ops.gram.gram_`.
        pairs: the same.
        fold: the same.
        config: how the kernels are cut into programs.
        zero_origins: the caller knows that every origin is zero; 16-bit rows of one dtype then need no planes.
    """
    device = fold.device
    rows, origins, sums, squares = zip(*blocks, strict=True)
    folds = max([len(out) for out in (*sums, *squares, *(gram for *_, gram in pairs)) if out is not None], default=1)
    if folds == 1:
        fold = fold.clamp(max=0)  # one matrix takes the rows of all folds
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        panels, tiles = cut(tuple(map(len, origins)), tuple((i, j) for i, j, _ in pairs), config.block_d, device)
        dtypes = {block.dtype for block in rows}
        planes = 1 if zero_origins and len(dtypes) == 1 and torch.float32 not in dtypes else 3
        fitting = _plane_bytes(device) // (len(panels) * planes * config.block_d * 2) // config.flush * config.flush
        origins = tuple(origin.contiguous() for origin in origins)
        if config.descriptors and device.type == "cuda":
            triton.set_allocator(lambda size, _, stream: torch.empty(size, dtype=torch.int8, device=device))
        rows = tuple(map(_readable, rows))
        outputs = [(gram.data_ptr(), gram.stride(0) if len(gram) > 1 else 0, gram.stride(1)) for *_, gram in pairs]
        for part in range(0, len(fold), max(fitting, config.flush)):
            here = slice(part, part + max(fitting, config.flush))
            records = _records([block[here] for block in rows], origins, sums, squares)
            _add(records, outputs, panels, tiles, fold[here], folds, origins, planes, config)


def _add(
    records: list[Record],
    outputs: list[tuple[int, int, int]],
    panels: Tensor,
    tiles: Tensor,
    fold: Tensor,
    folds: int,
    origins: Sequence[Tensor],
    in_memory: int,
    config: GramConfig,
) -> None:
    """Add rows whose planes fit into memory, ``in_memory`` of them for each panel."""
    device, n, side = fold.device, len(fold), config.block_d
    numbers = table([number for record in (*records, *outputs) for number in record], device)
    processors = multiprocessors(device)
    slots = slots_of(fold, folds, slot_length(n, folds, len(tiles), processors, config.chain), config.chain)
    many = len(slots.start)
    dtypes = {record.dtype for record in records}

    planes = torch.empty(len(panels), in_memory, n, side, dtype=torch.bfloat16, device=device)
    forms = torch.zeros(len(panels), many, dtype=torch.int32, device=device)
    parts = max(1, PROGRAMS * processors // (len(panels) * many))
    tallies = torch.empty(len(panels), many, parts, 2, side, dtype=torch.float64, device=device)
    any_origin = torch.cat(list(origins)).any()
    for dtype in dtypes:
        columns_kernel[(len(panels), many * parts)](
            numbers, panels, *slots[:3], any_origin, planes, forms, tallies, n, many, in_memory, parts,
            DTYPE_HERE=dtype, ROWS=128 if device.type == "cpu" else 16, BLOCK_D=side,
        )  # fmt: skip
    add_columns_kernel[(len(panels),)](
        numbers, panels, slots.fold_end, tallies, many, parts, folds, BLOCK_S=32, BLOCK_D=side
    )

    at_once = max(1, WORKSPACE // (many * side * side * 8))
    partials = torch.empty(many, min(at_once, len(tiles)), side, side, dtype=torch.float64, device=device)
    for first in range(0, len(tiles), at_once):
        count = min(at_once, len(tiles) - first)
        for half in {False, FLOAT16.value in dtypes}:
            operand = tl.float32 if device.type == "cpu" else tl.float16 if half else tl.bfloat16
            products_kernel[(count * many,)](
                numbers, tiles, forms, *slots[:3], planes, partials, n, many, in_memory, first, count,
                HALF=half, OPERAND=operand, PLANES=config.plane_count, CHAIN=config.chain, FLUSH=config.flush,
                BLOCK_N=config.block_n, BLOCK_D=side, DESCRIPTORS=config.descriptors,
                num_warps=config.num_warps, num_stages=config.num_stages,
            )  # fmt: skip
        add_products_kernel[(count, side // 16)](
            numbers, tiles, slots.fold_end, partials, len(records) * FIELDS.value, first, count, folds,
            ROWS=16, BLOCK_D=side,
        )  # fmt: skip


def _readable(block: Tensor) -> Tensor:
    """Return a block whose rows can be read 16 bytes at a time: the argument, or a copy with zeros to such a width."""
    strides = block.stride(1) == 1 and block.stride(0) % 8 == 0
    if strides and block.data_ptr() % 16 == 0 and block.shape[1] % 8 == 0:
        return block
    copy = block.new_zeros(len(block), triton.cdiv(block.shape[1], 8) * 8)
    copy[:, : block.shape[1]] = block
    return copy


def _records(
    rows: Sequence[Tensor], origins: Sequence[Tensor], sums: Sequence[Tensor | None], squares: Sequence[Tensor | None]
) -> list[Record]:
    codes = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
    alike = len({block.dtype for block in rows}) == 1
    return [
        Record(
            address=block.data_ptr(),
            stride=block.stride(0),
            width=len(origin),
            dtype=codes[block.dtype],
            planed=int(block.dtype == torch.float32 or (block.dtype == torch.float16 and not alike)),
            origin=origin.data_ptr(),
            sums=0 if total is None else total.data_ptr(),
            squares=0 if square is None else square.data_ptr(),
        )
        for block, origin, total, square in zip(rows, origins, sums, squares, strict=True)
    ]


def _plane_bytes(device: torch.device) -> int:
    """Return the bytes of planes that may be in memory: ``PLANE_BYTES`` for every 32 GB of a GPU."""
    if device.type != "cuda":
        return PLANE_BYTES
    return PLANE_BYTES * max(1, torch.cuda.get_device_properties(device).total_memory // 2**35)
