"""Compile every Triton kernel without a GPU, and report its registers and memory.

``python tests/kernels/compiled.py`` prints the table; ``TRITON_INTERPRET=0`` must be set before Triton is imported.
"""

import os

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "0"

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastprobe.kernels import _columns, _planes, _table, add_norm, bias_gelu, gram, score, unit_sum, vocabulary_scores

CAPABILITIES = [(8, 0), (9, 0), (10, 0)]
SHARED = {(8, 0): 166_912, (9, 0): 232_448, (10, 0): 232_448}
"""Largest shared memory of a program, in bytes, by compute capability."""

_FLOATS = {"tallies_ptr", "partials_ptr"}
_TYPES = {
    "any_origin_ptr": "*i1",
    "planes_ptr": "*bf16",
    "w_ptr": "*bf16",
    "x_ptr": "*bf16",
    "y_ptr": "*fp32",
    "rows_ptr": "*fp32",
    "intercept_ptr": "*fp32",
    "sums_ptr": "*fp32",
    "residual_ptr": "*fp32",
    "panels_ptr": "*i32",
    "tiles_ptr": "*i32",
    "forms_ptr": "*i32",
    "values": ("i64",) * 32,
    "found_ptr": "*fp32",
    "top_ptr": "*i32",
    "eps": "fp32",
}


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for one compute capability."""

    name: str
    capability: tuple[int, int]
    warps: int
    registers: int
    stack: int  # bytes a thread that did not fit into registers
    shared: int  # bytes
    ptx: str
    ttgir: str
    stages: int


def _type(name, floats):
    if name in floats:
        return floats[name]
    if name in _TYPES:
        return _TYPES[name]
    return ("*fp64" if name in _FLOATS else "*i64") if name.endswith("_ptr") else "i32"


def compile_kernel(name, kernel, capability, constants, num_warps=4, num_stages=3, floats=()):
    """Compile a kernel with some constants; pointers and sizes are multiples of 16, as they are in models.

    ``floats`` are the types of pointers that have another type in other kernels.
    """
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else _type(n, dict(floats)) for n in names}
    unknown = {kernel.params[i].name for i in range(len(names)) if kernel.params[i].do_not_specialize}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if n not in constants and n not in unknown and n != "values"
    }
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()}, aligned)
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    built = triton.compile(source, target=target, options={"num_warps": num_warps, "num_stages": num_stages})
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    (registers,), (stack,) = re.findall(r"REG:(\d+)", usage), re.findall(r"STACK:(\d+)", usage)
    ptx, ttgir, shared = built.asm["ptx"], built.asm["ttgir"], built.metadata.shared
    return Compiled(name, capability, num_warps, int(registers), int(stack), shared, ptx, ttgir, num_stages)


def products(capability, half=False, choice=0):
    """Compile the kernel of ``gram_`` that takes most time, in one of its configurations."""
    config = gram.configs(capability)[choice]
    constants = {
        "HALF": half,
        "OPERAND": tl.float16 if half else tl.bfloat16,
        "PLANES": config.plane_count,
        "CHAIN": config.chain,
        "FLUSH": config.flush,
        "BLOCK_N": config.block_n,
        "BLOCK_D": config.block_d,
        "DESCRIPTORS": config.descriptors,
    }
    name = f"gram products, {'float16' if half else 'bfloat16'}, {config.num_stages} stages"
    return compile_kernel(name, gram.products_kernel, capability, constants, config.num_warps, config.num_stages)


def scores(capability, planes=3, residual=True):
    """Compile the kernel of ``score``, in its default configuration."""
    config = score.configs(capability)[0]
    constants = {
        "X_PLANES": planes,
        "RESIDUAL": residual,
        "OPERAND": tl.bfloat16,
        "CHAIN": config.chain,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "BLOCK_D": config.block_d,
    }
    name = f"score, {planes} planes{', residual' if residual else ''}"
    return compile_kernel(name, score.score_kernel, capability, constants, config.num_warps, config.num_stages)


def vocabulary(capability, planes=1):
    """Compile the kernel of ``vocabulary_scores``, in its default configuration."""
    config = vocabulary_scores.configs(capability)[0]
    constants = {
        "PLANES": planes,
        "BIAS": True,
        "OPERAND": tl.bfloat16,
        "CHAIN": config.chain,
        "BLOCK_N": config.block_n,
        "BLOCK_V": config.block_v,
        "BLOCK_D": config.block_d,
    }
    floats = {"weight_ptr": "*bf16", "bias_ptr": "*fp32" if planes > 1 else "*bf16"}
    name = f"vocabulary scores, {planes} planes"
    kernel = vocabulary_scores.vocabulary_kernel
    return compile_kernel(name, kernel, capability, constants, config.num_warps, config.num_stages, floats)


def rowwise(capability):
    """Compile the memory-bound kernels of an encoder layer, at the widths of BERT-base."""
    norm, gelu = add_norm.configs(capability)[0], bias_gelu.configs(capability)[0]
    for short in ("bf16", "fp32"):
        floats = dict.fromkeys(("x_ptr", "residual_ptr", "weight_ptr", "bias_ptr", "out_ptr"), f"*{short}")
        constants = {"ROWS": norm.rows, "BLOCK_D": 1024}
        warps = norm.warps(1024)
        yield compile_kernel(
            f"add_norm, {short}", add_norm.add_norm_kernel, capability, constants, warps, floats=floats
        )
        constants = {"ROWS": gelu.rows, "BLOCK_D": gelu.block_d}
        warps = gelu.num_warps
        yield compile_kernel(
            f"bias_gelu, {short}", bias_gelu.bias_gelu_kernel, capability, constants, warps, floats=floats
        )


def others(capability):
    """Compile the memory-bound kernels."""
    side = gram.configs(capability)[0].block_d
    for number, dtype in enumerate(("bfloat16", "float16", "float32")):
        constants = {"DTYPE_HERE": number, "ROWS": 16, "BLOCK_D": side}
        yield compile_kernel(f"gram columns, {dtype}", _columns.columns_kernel, capability, constants)
    constants = {"BLOCK_S": 32, "BLOCK_D": side}
    yield compile_kernel("gram add columns", _columns.add_columns_kernel, capability, constants)
    yield compile_kernel("gram add products", gram.add_products_kernel, capability, {"ROWS": 16, "BLOCK_D": side})
    for width in (1024, 4096, 16_384):
        config = unit_sum.UnitSumConfig()
        constants = {"ROWS": config.rows(width), "BLOCK_D": width}
        floats = {"rows_ptr": "*bf16", "valid_ptr": "*i1", "sums_ptr": "*fp64"}
        warps = config.warps(width)
        yield compile_kernel(
            f"unit sum, {width}", unit_sum.unit_sum_kernel, capability, constants, warps, floats=floats
        )
    yield compile_kernel("planes", _planes._planes_kernel, capability, {"COUNT": 3, "BLOCK": 1024})
    constants = {"BATCH": _table.BATCH, "OFFSET": _table._OFFSET}
    yield compile_kernel("table", _table._write_kernel, capability, constants)


if __name__ == "__main__":
    print(f"Triton {triton.__version__}\n")
    print("| Kernel | Compute capability | Warps | Registers a thread | Stack, bytes | Shared memory, bytes |")
    print("| --- | --- | --- | --- | --- | --- |")
    for at in CAPABILITIES:
        gram_hot = products(at), products(at, choice=1), products(at, half=True)
        hot = *gram_hot, scores(at), scores(at, 1, False), vocabulary(at), vocabulary(at, 3)
        for row in (*hot, *rowwise(at), *others(at)):
            cells = (row.name, ".".join(map(str, at)), row.warps, row.registers, row.stack, row.shared)
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
