"""The library of C++ kernels: loading it, its reasons to refuse arguments, and the instruction set it runs on."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from fastprobe.errors import BackendError
from fastprobe.ops._dispatch import processors

HOW_TO_BUILD = "with a C++ compiler, `pip install --force-reinstall --no-deps --editable .` in the checkout builds it"

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The dtypes that the kernels read, with their numbers in ``csrc/cpu/kernels.h``."""

PAIRS = "avx512-bf16"
"""Name of the instruction set that multiplies pairs of bfloat16."""

INTERFACE = 5
"""Version of the calls below; ``csrc/cpu/module.cpp`` has the same number. It grows when a signature there changes."""

_forced: ContextVar[str | None] = ContextVar("instruction_set", default=None)


@functools.cache
def cpu_library() -> Any:
    """Return ``fastprobe._cpu``, or ``None`` and warn once a process if it is missing or built from other sources."""
    try:
        library = importlib.import_module("fastprobe._cpu")
    except ImportError as error:
        reason = f"is missing ({error})"
    else:
        if getattr(library, "INTERFACE", 0) == INTERFACE:
            return library
        reason = "was built from other sources"
    warnings.warn(f"CPU kernels: using torch, because fastprobe._cpu {reason}; {HOW_TO_BUILD}", stacklevel=2)
    return None


def not_on_a_cpu(tensors: Iterable[Tensor]) -> str | None:
    """Return a reason to refuse if any tensor is off the CPU, else ``None``."""
    elsewhere = [tensor.device for tensor in tensors if tensor.device.type != "cpu"]
    return f"a tensor is on {elsewhere[0]}, not on a CPU" if elsewhere else None


def cpu_refuses(rows: Sequence[Tensor]) -> str | None:
    """Return why the C++ kernels cannot read these rows, or ``None``."""
    if reason := not_on_a_cpu(rows):
        return reason
    for block in rows:
        if block.dtype not in DTYPES:
            return f"{str(block.dtype).removeprefix('torch.')} rows are not for the C++ kernels"
    return None if cpu_library() else f"fastprobe._cpu was not built; {HOW_TO_BUILD}"


def rows_argument(rows: Tensor) -> tuple[int, int, int, int, int]:
    """Return a matrix as the kernels take it: address, dtype, width, row stride, column stride."""
    return rows.data_ptr(), DTYPES[rows.dtype], rows.shape[1], rows.stride(0), rows.stride(1)


def cpu_refuses_floats(tensors: Sequence[Tensor]) -> str | None:
    """Return why the C++ kernels cannot read these tensors, or ``None``; they take float32 with adjacent columns."""
    if reason := not_on_a_cpu(tensors):
        return reason
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            return f"it takes float32, not {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.stride(-1) != 1:
            return "the columns of an argument do not lie side by side"
        if tensor.requires_grad and torch.is_grad_enabled():
            return "it has no derivative"
    return None if cpu_library() else f"fastprobe._cpu was not built; {HOW_TO_BUILD}"


def matrix_argument(rows: Tensor) -> tuple[int, int]:
    """Return a float32 matrix with adjacent columns as the kernels take it: address, row stride."""
    return rows.data_ptr(), rows.stride(0)


def instruction_sets() -> list[str]:
    """Return the instruction sets of this build that this processor has, fastest first; none without the library."""
    library = cpu_library()
    return [*_ranked(library, processors.family().bfloat16_pairs)] if library else []


@functools.cache
def _ranked(library: Any, pairs_first: bool) -> tuple[str, ...]:
    """Return the library's instruction sets, with :data:`PAIRS` behind the next one unless ``pairs_first``."""
    first, *rest = library.instruction_sets()
    if first == PAIRS and not pairs_first:
        return (rest[0], first, *rest[1:])
    return (first, *rest)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Run the C++ kernels on one instruction set inside this context, for tests and measurements.

    Raises:
        BackendError: the build or the processor lacks ``name``.
    """
    if name not in instruction_sets():
        raise BackendError(f"instruction set: {name!r} is not one of {', '.join(instruction_sets()) or 'none'}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def chosen_instruction_set() -> str:
    """Return the instruction set that the next call of a C++ kernel runs on."""
    return _forced.get() or instruction_sets()[0]


def peak_operations(steps: int, pairs: bool) -> int:
    """Run multiply-adds and nothing else, on as many cores as torch has threads.

    Args:
        steps: number of steps; a step is 12 multiply-adds of whole registers on each thread.
        pairs: multiply pairs of bfloat16 where the instruction set has them, else float32.

    Returns:
        The number of floating-point operations. Divided by the seconds they took, it is the peak rate of this machine.
    """
    return cpu_library().burn(steps, pairs, torch.get_num_threads(), chosen_instruction_set())
