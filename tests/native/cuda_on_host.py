"""The CUDA kernels without a GPU: their index arithmetic as a Python module, models of the units it is for, and, from
both, a stand-in for ``fastprobe._cuda`` that computes what a GPU would.

The models of the copy engine, of wgmma and of the registers follow the PTX ISA and share nothing with the kernels.
"""

import ctypes
import functools
import hashlib
import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import numpy as np
import pybind11
import torch

from fastprobe.ops._cuda_gram import DTYPES, EXACT_TILE, SLAB, TILE

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "native" / "layout.cpp"
HEADERS = [ROOT / "csrc" / "cuda" / name for name in ("layout.h", "plan.h")]
ROW, BOX, TOKENS = 128, 64, 16  # bytes of a row of a box, its columns, tokens of one wgmma


@functools.cache
def host_layout() -> ModuleType | None:
    """``csrc/cuda/layout.h`` as a Python module, built once for these sources; ``None`` without a C++ compiler."""
    if (compiler := shutil.which("c++")) is None:
        return None
    key = hashlib.sha256(b"".join(path.read_bytes() for path in [SOURCE, *HEADERS])).hexdigest()[:16]
    built = ROOT / "build" / f"layout-{key}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not built.exists():
        built.parent.mkdir(exist_ok=True)
        include = [f"-I{path}" for path in (HEADERS[0].parent, sysconfig.get_path("include"), pybind11.get_include())]
        command = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", *include, SOURCE, "-o", built]
        subprocess.run(list(map(str, command)), check=True)
    spec = importlib.util.spec_from_file_location("layout", built)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def poisoned(items, tile):
    """A workspace in which every number that is read must have been written."""
    return np.full(items * tile * tile, np.nan)


# -- models of the units ---------------------------------------------------------------------------------------------


def swizzled(address):
    """128-byte swizzle: the 16-byte piece of a row, by the row within 1,024 bytes."""
    return address ^ (address >> 7 & 7) << 4


def copy_box(memory, to, matrix, column, row):
    """The copy engine: 64 columns of 128 rows, two bytes a number, zero outside the matrix."""
    assert to % 1024 == 0
    padded = np.zeros((SLAB, BOX))
    part = matrix[row : row + SLAB, column : column + BOX]
    padded[: part.shape[0], : part.shape[1]] = part
    tokens, columns = np.mgrid[:SLAB, :BOX]
    memory[swizzled(to + tokens * ROW + columns * 2) // 2] = padded


def operand(memory, descriptor, columns):
    """What wgmma reads for a descriptor of columns that lie side by side: (columns, 16 tokens)."""
    descriptor = int(descriptor)
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    assert descriptor >> 62 == 1  # 128-byte swizzle
    assert descriptor >> 49 & 7 == 0  # atoms begin at multiples of 1,024 bytes
    m, k = np.mgrid[:columns, :TOKENS]
    return memory[swizzled(start + m % 64 * 2 + m // 64 * leading + k % 8 * ROW + k // 8 * stride) // 2]


def registers_of_wgmma(products):
    """(64, 128) products as 64 registers of each of 128 threads."""
    thread, i = np.mgrid[:128, :64]
    warp, group, place = thread // 32, thread % 32 // 4, thread % 4
    return products[16 * warp + group + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * place + i % 2]


def run_wgmma(layout, plan, blocks):
    """Every item of a plan as the kernel goes about it, one after the other."""
    thread, i = np.mgrid[:128, :64]
    first, n = 3 * 1024, 0  # where the ring begins
    for index in range(plan.items):
        memory = np.full((first + layout.STAGES * layout.STAGE_BYTES) // 2, np.nan)
        sums = np.zeros((2, 64, 128))
        *_, begin, end, diagonal = plan.work(index)
        for slab in range(begin, end):
            stage = first + layout.stage_of(n) * layout.STAGE_BYTES
            for block, column, row, to in plan.boxes(index, slab, stage):
                copy_box(memory, to, blocks[block], column, row)
            for half in range(2):
                for step in range(layout.STEPS):
                    a = operand(memory, layout.further(layout.left_operand(stage, half), step), 64)
                    b = operand(memory, layout.further(layout.right_operand(stage, diagonal), step), 128)
                    sums[half] += a @ b.T
            n += 1
        for half in range(2):
            rows = half * 64 + layout.accumulator_row(thread, i)
            plan.put(index, rows, layout.accumulator_column(thread, i), registers_of_wgmma(sums[half]))
    plan.add_parts()


def exact_products(layout, left, right):
    """(16 tokens, 64 columns) each, as the float64 kernel brings, reads and multiplies them: element by element."""
    loads = layout.EXACT_TILE * layout.EXACT_DEPTH // layout.EXACT_THREADS
    thread, load = np.mgrid[: layout.EXACT_THREADS, :loads]
    token, column = layout.exact_token(thread, load), layout.exact_column(thread)
    shared = np.full((2, layout.EXACT_DEPTH, layout.EXACT_STRIDE), np.nan)
    for side, tokens in enumerate((left, right)):
        shared[side][token, column] = tokens[token, column]
    products, lanes = np.full((64, 64), np.nan), np.arange(32)
    for row in range(0, 64, 16):
        a = np.full((16, 16), np.nan)  # columns of the left block x tokens, by the manual's places
        for i in range(8):
            a[lanes // 4 + i % 2 * 8, i // 2 * 4 + lanes % 4] = shared[0][
                layout.a_token(lanes, i), row + layout.a_column(lanes, i)
            ]
        for column in range(0, 64, 8):
            b = np.full((16, 8), np.nan)
            for i in range(4):
                b[i * 4 + lanes % 4, lanes // 4] = shared[1][layout.b_token(lanes, i), column + layout.b_column(lanes)]
            c = a @ b
            for i in range(4):
                products[row + layout.c_row(lanes, i), column + layout.c_column(lanes, i)] = c[
                    lanes // 4 + i // 2 * 8, lanes % 4 * 2 + i % 2
                ]
    return products


def run_exact(layout, plan, blocks):
    """The float64 kernel's items, one after the other."""
    rows, columns = np.mgrid[:EXACT_TILE, :EXACT_TILE]
    padded = [np.pad(block, ((0, 0), (0, EXACT_TILE))) for block in blocks]
    for index in range(plan.items):
        _, row, column, begin, end, _ = plan.work(index)
        left, right = plan.blocks(index)
        sums = np.zeros((EXACT_TILE, EXACT_TILE))
        for at in range(begin * SLAB, end * SLAB, layout.EXACT_DEPTH):
            tokens = slice(at, at + layout.EXACT_DEPTH)
            a, b = padded[left][tokens, row : row + EXACT_TILE], padded[right][tokens, column : column + EXACT_TILE]
            sums += exact_products(layout, a, b)
        plan.put(index, rows, columns, sums)
    plan.add_parts()


# -- the stand-in -----------------------------------------------------------------------------------------------------


class HostLibrary:
    """``fastprobe._cuda`` for tensors on a CPU: the same arguments, read from the same addresses."""

    ARCHITECTURES = "9.0a"

    def __init__(self, layout: ModuleType):
        self._layout = layout

    def rows(
        self,
        block,
        columns,
        width,
        index,
        fold_slabs,
        folds,
        splits,
        is_gathered,
        gathered,
        gathered_stride,
        low,
        sums,
        device,
        stream,
    ):
        first = _numbers(fold_slabs, np.int32, (folds + 1,))
        used = _numbers(index, np.int32, (int(first[-1]) * SLAB,))
        values = _positions(block, used)[:, _numbers(columns, np.int32, (width,)) if columns else slice(None)]
        if gathered and _numbers(is_gathered, np.int32, (1,))[0]:
            to = _numbers(gathered, np.int16, (len(used), width), (gathered_stride, 1))
            dtype = next(dtype for dtype, number in DTYPES.items() if number == block[4])
            high = torch.from_numpy(values).to(dtype)
            plane = (torch.from_numpy(values) - high.double()).to(dtype) if low else high
            to[:] = plane.view(torch.int16).numpy()
        if sums:
            out = _numbers(sums, np.float64, (folds, splits, 2, width))
            for fold in range(folds):
                for split in range(splits):
                    begin, end = self._layout.slabs_of(first.tolist(), fold, split, splits)
                    part = values[begin * SLAB : end * SLAB]
                    out[fold, split] = part.sum(0), (part**2).sum(0)

    def gram(self, blocks, bfloat16, n, positions, is_gathered, device, stream, **plan):
        chosen = _numbers(is_gathered, np.int32, (1,))[0]
        dtype = 1 if bfloat16 else 2
        matrices = []
        for rows, row_stride, gathered, gathered_stride, width in blocks:
            address, stride, length = (gathered, gathered_stride, positions) if chosen else (rows, row_stride, n)
            assert address % 16 == 0
            assert stride % 8 == 0
            matrices.append(_values(address, dtype, (length, width), (stride, 1)))
        run_wgmma(self._layout, self._layout.Plan(tile=TILE, **plan), matrices)

    def gram_exact(self, blocks, index, device, stream, folds, fold_slabs, **plan):
        used = _numbers(index, np.int32, (int(_numbers(fold_slabs, np.int32, (folds + 1,))[-1]) * SLAB,))
        plan = self._layout.Plan(tile=EXACT_TILE, folds=folds, fold_slabs=fold_slabs, **plan)
        run_exact(self._layout, plan, [_positions(block, used) for block in blocks])


def _end(index):
    return int(index.max(initial=-1)) + 1


def _positions(block, index):
    """(positions, width) numbers about the origin, zero where there is no row."""
    address, row_stride, column_stride, width, dtype, origin = block
    values = _values(address, dtype, (_end(index), width), (row_stride, column_stride))
    if origin:
        values = values - _numbers(origin, np.float64, (width,))
    return np.where(index[:, None] < 0, 0.0, values[index])


def _values(address, dtype, shape, strides):
    """Numbers of a dtype of ``DTYPES``, as float64."""
    if dtype == DTYPES[torch.bfloat16]:
        return (_numbers(address, np.uint16, shape, strides).astype(np.uint32) << 16).view(np.float32).astype(float)
    kinds = {DTYPES[torch.float32]: np.float32, DTYPES[torch.float16]: np.float16, DTYPES[torch.float64]: np.float64}
    return _numbers(address, kinds[dtype], shape, strides).astype(float)


def _numbers(address, dtype, shape, strides=None):
    """A view of memory; strides count numbers."""
    size = np.dtype(dtype).itemsize
    steps = strides or tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    reach = sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) + 1 if min(shape) else 0
    memory = np.frombuffer((ctypes.c_char * (reach * size)).from_address(address), dtype)
    return np.lib.stride_tricks.as_strided(memory, shape, [step * size for step in steps])
