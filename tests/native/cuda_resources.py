"""Registers, memory and machine code of every kernel in ``csrc/cuda``. Needs nvcc, but no GPU."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "csrc" / "cuda" / "gram.cu"

DYNAMIC_SHARED = {"gram_kernel": 7 * 32_768 + 1024}
"""Bytes of shared memory that a launch requests, in addition to those that the compiler reports."""


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None)


def disassembler() -> str | None:
    """Return the path of ``cuobjdump``, from PATH or from Triton's package."""
    triton = importlib.util.find_spec("triton")
    carried = Path(triton.origin).with_name("backends") / "nvidia" / "bin" if triton and triton.origin else None
    return shutil.which("cuobjdump") or (carried and shutil.which("cuobjdump", path=carried))


@functools.cache
def compiled(architecture: str) -> tuple[bytes, str]:
    """Return the machine code for ``sm_<architecture>``, and the compiler's messages."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "gram.cubin"
        target = f"-gencode=arch=compute_{architecture},code=sm_{architecture}"
        command = [nvcc(), "-std=c++17", "-O3", "-cubin", target, "-Xptxas=-v", SOURCE, "-o", cubin]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return cubin.read_bytes(), done.stderr


def resources(architecture: str) -> list[dict[str, str | int]]:
    """Return one row a kernel: ``kernel``, ``arch``, ``registers``, ``shared_bytes``, ``stack_bytes``."""
    rows: list[dict[str, str | int]] = []
    for part in compiled(architecture)[1].split("Compiling entry function '")[1:]:
        kernel = _readable(part.partition("'")[0])
        rows.append(
            {
                "kernel": kernel,
                "arch": f"sm_{architecture}",
                "registers": _number(r"Used (\d+) registers", part),
                "shared_bytes": _number(r"(\d+) bytes smem", part) + DYNAMIC_SHARED.get(kernel.partition("<")[0], 0),
                "stack_bytes": sum(map(int, re.findall(r"(\d+) bytes (?:stack frame|spill)", part))),
            }
        )
    return sorted(rows, key=lambda row: row["kernel"])


@functools.cache
def machine_code(architecture: str) -> dict[str, str]:
    """Return the disassembly of every kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled(architecture)[0])
        file.flush()
        command = [disassembler(), "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = text.split("Function : ")[1:]
    return {_readable(part.split()[0]): part for part in parts}


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _readable(mangled: str) -> str:
    name = re.search(r"\d((?:gram|gram_exact|rows|add_parts)_kernel)", mangled)[1]
    return name + {"ILb1E": "<bfloat16>", "ILb0E": "<float16>"}.get(mangled.partition(name)[2][:5], "")
