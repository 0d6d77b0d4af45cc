"""The CUDA kernels without a GPU: their index arithmetic, or all of them, as Python modules built for the CPU.

The models of the copy engine, of wgmma and of the registers follow the PTX ISA and share nothing with the kernels.
"""

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

from fastprobe.ops.gram.cuda_launches import SLAB
from tests.native.cuda_resources import nvcc

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "csrc" / "cuda"
BUILD = HERE.parents[1] / "build"
ROW, BOX, ROWS, TOKENS = 128, 64, 64, 16  # bytes of a row of a box, its columns, its rows, tokens of one wgmma


@functools.cache
def host_layout() -> ModuleType | None:
    """Return ``csrc/cuda/layout.h`` as a Python module; ``None`` without a C++ compiler."""
    files = {path.name: path for path in (HERE / "layout.cpp", KERNELS / "layout.h", KERNELS / "plan.h")}
    compiler = shutil.which("c++")
    return compiler and _built("layout", [compiler, "-fPIC"], files, ["layout.cpp"])


@functools.cache
def simulator() -> ModuleType | None:
    """Return ``fastprobe._cuda`` built for the CPU; ``None`` without nvcc, whose headers the kernels need.

    The kernels are the same. Only ``ptx.cuh`` is replaced, by ``simulated_units.h``, which simulates its instructions.
    """
    names = ("gram.cuh", "gram_exact.cuh", "rows.cuh", "gram.h", "layout.h", "plan.h", "module.cpp")
    files = {name: KERNELS / name for name in names}
    files |= {"ptx.cuh": HERE / "simulated_units.h", "simulator.cpp": HERE / "simulator.cpp"}
    flags = ["-Xcompiler=-fPIC,-fvisibility=hidden,-Wno-attributes", '-DFASTPROBE_ARCHITECTURES="9.0a"']
    return nvcc() and _built("_cuda", [nvcc(), *flags], files, ["simulator.cpp", "module.cpp"])


@functools.cache
def host_code() -> ModuleType | None:
    """Return ``fastprobe._cuda`` over a runtime without a GPU, ``fake_runtime.cpp``; ``None`` without nvcc."""
    files = {path.name: path for path in KERNELS.iterdir()} | {"fake_runtime.cpp": HERE / "fake_runtime.cpp"}
    target = "-gencode=arch=compute_90a,code=sm_90a"
    flags = ["-cudart=none", target, "-Xcompiler=-fPIC,-fvisibility=hidden", '-DFASTPROBE_ARCHITECTURES="9.0a"']
    return nvcc() and _built("_cuda", [nvcc(), *flags], files, ["gram.cu", "module.cpp", "fake_runtime.cpp"])


def _built(name: str, compiler: list[str], files: dict[str, Path], sources: list[str]) -> ModuleType:
    """Build a module from copies of files under new names, once for each command and set of contents."""
    parts = [str([*compiler, *sources]).encode(), *(files[name].read_bytes() for name in sorted(files))]
    key = hashlib.sha256(b"".join(parts)).hexdigest()[:16]
    folder = BUILD / f"{name}-{key}"
    library = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for copy, path in files.items():
            shutil.copy(path, folder / copy)
        include = [f"-I{path}" for path in (sysconfig.get_path("include"), pybind11.get_include())]
        subprocess.run(
            [*compiler, "-std=c++17", "-O1", "-shared", *include, *sources, "-o", library], cwd=folder, check=True
        )
    # pybind11 returns the same module for the same name; the name of the function that makes it is after the last dot.
    spec = importlib.util.spec_from_file_location(f"build_{key}.{name}", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def poisoned(items, tile):
    """Return a workspace of NaN: a number that is read before it is written shows."""
    return np.full(items * tile * tile, np.nan)


# -- models of the units ---------------------------------------------------------------------------------------------


def swizzled(address):
    """Return an address under the 128-byte swizzle: the row within 1,024 bytes permutes the 16-byte pieces."""
    return address ^ (address >> 7 & 7) << 4


def copy_box(memory, to, matrix, column, row):
    """Copy 64 columns of 64 rows as the copy engine does: two bytes a number, zeros outside the matrix."""
    assert to % 1024 == 0
    padded = np.zeros((ROWS, BOX))
    part = matrix[row : row + ROWS, column : column + BOX]
    padded[: part.shape[0], : part.shape[1]] = part
    tokens, columns = np.mgrid[:ROWS, :BOX]
    memory[swizzled(to + tokens * ROW + columns * 2) // 2] = padded


def operand(memory, descriptor, columns):
    """Return the numbers that wgmma reads for a descriptor of adjacent columns: (columns, 16 tokens)."""
    descriptor = int(descriptor)
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    assert descriptor >> 62 == 1  # 128-byte swizzle
    assert descriptor >> 49 & 7 == 0  # atoms begin at multiples of 1,024 bytes
    m, k = np.mgrid[:columns, :TOKENS]
    return memory[swizzled(start + m % 64 * 2 + m // 64 * leading + k % 8 * ROW + k // 8 * stride) // 2]


def registers_of_wgmma(products):
    """Return (64, 128) products as 64 registers of each of 128 threads."""
    thread, i = np.mgrid[:128, :64]
    warp, group, place = thread // 32, thread % 32 // 4, thread % 4
    return products[16 * warp + group + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * place + i % 2]


def run_wgmma(layout, plan, blocks):
    """Run the items of a plan one after the other, in the steps of the kernel."""
    thread, i = np.mgrid[:128, :64]
    first, place = 3 * 1024, layout.Place()  # the ring begins at `first`
    for index in range(plan.items):
        memory = np.full((first + layout.STAGES * layout.STAGE_BYTES) // 2, np.nan)
        sums = np.zeros((2, 64, 128))
        *_, begin, end, diagonal = plan.work(index)
        for row in range(begin * SLAB, end * SLAB, layout.STAGE_ROWS):
            for block, column, at, to in plan.boxes(index, row, first + place.stage * layout.STAGE_BYTES):
                copy_box(memory, to, blocks[block], column, at)
            for half in range(2):
                left = layout.at_stage(layout.left_operand(first, half), place.stage)
                right = layout.at_stage(layout.right_operand(first, diagonal), place.stage)
                for step in range(layout.STEPS):
                    a = operand(memory, layout.further(left, step), 64)
                    b = operand(memory, layout.further(right, step), 128)
                    sums[half] += a @ b.T
            place.advance()
        for half in range(2):
            rows = half * 64 + layout.accumulator_row(thread, i)
            plan.put(index, rows, layout.accumulator_column(thread, i), registers_of_wgmma(sums[half]))
    plan.add_parts()


def exact_products(layout, left, right):
    """Multiply two (16 tokens, 64 columns) operands with the index arithmetic of the float64 kernel."""
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
