"""Compare the C++ kernels with the peak rate of this processor: ``fastprobe bench``.

``benchmarks/`` compares them with other libraries. The peak is measured in the same rounds and with as many threads, by
multiply-adds that stay in registers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import torch

from fastprobe.errors import BackendError
from fastprobe.ops._dispatch.cpu_library import instruction_set, instruction_sets, peak_operations
from fastprobe.ops.gram import Block, Pair, gram_
from fastprobe.ops.score import score

TOKENS = 16_384
WIDTHS = (384, 768, 1024)
ROUNDS = 9
STEPS = 1_000_000  # of the peak: some milliseconds


class _Task(NamedTuple):
    run: Callable[[str], Any]  # on a backend
    operations: int
    error: Callable[[Any], float]  # of what ``run`` returned, against float64


def cpu(rounds: int = ROUNDS, tokens: int = TOKENS) -> Iterator[dict[str, Any]]:
    """Measure the rates of the C++ kernels, and yield each row when it is measured.

    Args:
        rounds: every number is a median over them; each round measures the kernel, the peak and torch in turn.
        tokens: rows of the matrices.

    Yields:
        dicts of ``operation``, ``width``, ``dtype``, ``instruction_set``, ``gflops`` (of the operations that the task
        needs, with the triangle of x^T x counted once), ``peak_gflops``, ``of_peak`` and ``times_torch`` (ratios within
        one round) and ``error``.

    Raises:
        BackendError: the kernels were not built.
    """
    sets = instruction_sets()
    if not sets:
        raise BackendError(f"bench cpu: {gram_.refusals([], [], torch.zeros(0, dtype=torch.int64))['cpu']}")
    cases = [(sets[0], dtype, width) for dtype in (torch.float32, torch.bfloat16) for width in WIDTHS]
    cases += [(isa, torch.float32, WIDTHS[0]) for isa in sets[1:]]
    for isa, dtype, width in cases:
        for operation, make in (("gram_", _gram), ("score", _score)):
            with instruction_set(isa):
                row = _measured(
                    make(tokens, width, dtype), pairs=make is _gram and dtype == torch.bfloat16, rounds=rounds
                )
            yield {
                "operation": operation,
                "width": width,
                "dtype": str(dtype).removeprefix("torch."),
                "instruction_set": isa,
            } | row


def _measured(task: _Task, pairs: bool, rounds: int) -> dict[str, float]:
    error = task.error(task.run("cpu"))
    task.run("torch")
    peak_operations(STEPS // 10, pairs)
    ours, peak, torchs = [], [], []
    for _ in range(rounds):
        operations, seconds = _timed(lambda: peak_operations(STEPS, pairs))
        peak.append(operations / seconds)
        ours.append(task.operations / _timed(lambda: task.run("cpu"))[1])
        torchs.append(task.operations / _timed(lambda: task.run("torch"))[1])
    return {
        "gflops": median(ours) / 1e9,
        "peak_gflops": median(peak) / 1e9,
        "of_peak": median(a / b for a, b in zip(ours, peak, strict=True)),
        "times_torch": median(a / b for a, b in zip(ours, torchs, strict=True)),
        "error": error,
    }


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def _gram(tokens: int, width: int, dtype: torch.dtype) -> _Task:
    """Return the task of ``gram_`` for one pair x -> y; the error is relative to sqrt(G_ii G_jj)."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(tokens, width, generator=generator).to(dtype) for _ in range(2))
    fold = torch.zeros(tokens, dtype=torch.int64)
    origin = torch.zeros(width, dtype=torch.float64)

    def run(backend: str) -> list[torch.Tensor]:
        grams = [torch.zeros(1, width, width, dtype=torch.float64) for _ in range(2)]
        sums, squares = ([torch.zeros(1, width, dtype=torch.float64) for _ in range(2)] for _ in range(2))
        blocks = [Block(rows, origin, *totals) for rows, *totals in zip((x, y), sums, squares, strict=True)]
        gram_.on(backend)(blocks, [Pair(0, 0, grams[0]), Pair(0, 1, grams[1])], fold)
        return [grams[0][0].triu(), grams[1][0]]

    def error(got: list[torch.Tensor]) -> float:
        a, b = x.double(), y.double()
        sizes = torch.linalg.vector_norm(a, dim=0), torch.linalg.vector_norm(b, dim=0)
        off = got[0] - (a.mT @ a).triu(), got[1] - a.mT @ b
        return max(float((o.abs() / torch.outer(sizes[0], size)).max()) for o, size in zip(off, sizes, strict=True))

    return _Task(run, tokens * width * (width + 1) + 2 * tokens * width * width, error)


def _score(tokens: int, width: int, dtype: torch.dtype) -> _Task:
    """Return the task of ``score`` for one map; the error is that of the squared residual, relative."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(tokens, width, generator=generator).to(dtype) for _ in range(2))
    coef, intercept = torch.randn(width, width, generator=generator) / width**0.5, torch.randn(width)

    def error(got: Any) -> float:
        exact = (y.double() - x.double() @ coef.double() - intercept.double()).square().sum(1)
        return float((got.error / exact - 1).abs().max())

    return _Task(lambda backend: score.on(backend)(x, coef, intercept, y), 2 * tokens * width * width, error)
