"""The kernels in C++: whether they were built, and the instruction set they run on."""

from __future__ import annotations

import functools
import importlib
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from fastprobe.errors import BackendError

HOW_TO_BUILD = "with a C++ compiler, `pip install --force-reinstall --no-deps --editable .` in the checkout builds it"

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""What the kernels read, by the number ``csrc/cpu/kernels.h`` gives it."""

PAIRS = "avx512-bf16"
"""The instruction set that multiplies pairs of bfloat16."""

INTERFACE = 5
"""What this Python calls; the same number in ``csrc/cpu/module.cpp``. It goes up when a call there changes."""

_forced: ContextVar[str | None] = ContextVar("instruction_set", default=None)


@functools.cache
def cpu_library() -> Any:
    """``fastprobe._cpu``, or ``None``, with one warning a process, where it was not built or not from these sources."""
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
    """That one of these is not on a CPU, or ``None``."""
    elsewhere = [tensor.device for tensor in tensors if tensor.device.type != "cpu"]
    return f"a tensor is on {elsewhere[0]}, not on a CPU" if elsewhere else None


def cpu_refuses(rows: Sequence[Tensor]) -> str | None:
    """Why the C++ kernels cannot read these rows, or ``None``."""
    if reason := not_on_a_cpu(rows):
        return reason
    for block in rows:
        if block.dtype not in DTYPES:
            return f"{str(block.dtype).removeprefix('torch.')} rows are not for the C++ kernels"
    return None if cpu_library() else f"fastprobe._cpu was not built; {HOW_TO_BUILD}"


def rows_argument(rows: Tensor) -> tuple[int, int, int, int, int]:
    """A matrix as the kernels take it: address, dtype, width, row stride, column stride."""
    return rows.data_ptr(), DTYPES[rows.dtype], rows.shape[1], rows.stride(0), rows.stride(1)


def cpu_refuses_floats(tensors: Sequence[Tensor]) -> str | None:
    """Why the C++ kernels cannot read these tensors of float32 whose last dimension is dense, or ``None``."""
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
    """A float32 matrix whose columns are adjacent: address, row stride."""
    return rows.data_ptr(), rows.stride(0)


def instruction_sets() -> list[str]:
    """What this build and this processor have, fastest first; empty without the C++ kernels."""
    library = cpu_library()
    return [*_ranked(library)] if library else []


@functools.cache
def _ranked(library: Any) -> tuple[str, ...]:
    """The instruction sets of a build, from best to least.

    One that multiplies pairs of bfloat16 goes behind the next where that is the slower way: an Emerald Rapids does half
    as many operations a second in VDPBF16PS as in float32 multiply-adds, a Zen 4 twice as many (benchmarks/NOTES.md).
    """
    first, *rest = library.instruction_sets()
    if first == PAIRS and _rate(library, pairs=True) < _rate(library, pairs=False):
        return (rest[0], first, *rest[1:])
    return (first, *rest)


def _rate(library: Any, pairs: bool) -> float:
    """Operations a second of one thread's multiply-adds: the best of a few runs of a millisecond, whoever else runs."""
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        operations = library.burn(100_000, pairs, 1, PAIRS)
        rates.append(operations / (time.perf_counter() - start))
    return max(rates)


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Inside this context the C++ kernels run on this one: for tests and measurements.

    Raises:
        BackendError: the build or the processor lacks it.
    """
    if name not in instruction_sets():
        raise BackendError(f"instruction set: {name!r} is not one of {', '.join(instruction_sets()) or 'none'}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def chosen_instruction_set() -> str:
    """The instruction set that the next call of a C++ kernel runs on."""
    return _forced.get() or instruction_sets()[0]


def peak_operations(steps: int, pairs: bool) -> int:
    """Keep the multiply-add units of as many cores as torch has threads busy, and nothing else.

    Args:
        steps: how long; a step is 12 multiply-adds of whole registers a thread.
        pairs: of pairs of bfloat16 where the instruction set has them, else of float32.

    Returns:
        The floating-point operations done: over the seconds it took, the peak of this machine.
    """
    return cpu_library().burn(steps, pairs, torch.get_num_threads(), chosen_instruction_set())
