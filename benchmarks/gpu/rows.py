"""Times and errors of contestants on one task, written to a file one by one, so that none is lost with its process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")

Run = Callable[[], Any]


class Contestant(NamedTuple):
    """A function to time, and one that does the same from a clean state and returns what is checked."""

    run: Run
    result: Run


def time_of(contestant: Contestant | Run) -> Run:
    """Return the function to time."""
    return contestant.run if isinstance(contestant, Contestant) else contestant


def result_of(contestant: Contestant | Run) -> Any:
    """Return the result to check."""
    return contestant.result() if isinstance(contestant, Contestant) else contestant()


ROUNDS = (3, 40)
"""Fewest and most rounds of a race."""


class Rows:
    """A file of results, one JSON object a line. Lines with the same task, case and contestant are one result."""

    def __init__(self, path: str | Path):
        self._path = Path(path)

    def write(self, task: str, case: str, contestant: str, **found: Any) -> None:
        """Add a line, and wait until it is on the disk."""
        with self._path.open("a") as file:
            file.write(json.dumps({"task": task, "case": case, "contestant": contestant, **found}) + "\n")
            file.flush()
            os.fsync(file.fileno())


def merged(lines: Iterator[str]) -> list[dict[str, Any]]:
    """Return the results of a file's lines. A line that was cut off is left out."""
    results: dict[tuple[str, str, str], dict[str, Any]] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        results.setdefault((row["task"], row["case"], row["contestant"]), {}).update(row)
    return list(results.values())


def race(
    rows: Rows,
    task: str,
    case: str,
    contestants: Mapping[str, Contestant | Run],
    *,
    error: Callable[[Any], float] | None = None,
    gate: float | None = None,
    flops: float | None = None,
    bytes: float | None = None,
    seconds: float = 2.0,
    graphs: bool = False,
) -> None:
    """Time contestants in turn, then check their results. An error that is too large is written beside the time.

    Args:
        rows: where results are written.
        task: name of the task.
        case: sizes and dtype.
        contestants: name -> function that does the whole work and returns what ``error`` takes, or a ``Contestant``.
        error: returns the error of a result.
        gate: largest error that is right.
        flops: smallest number of operations of the task.
        bytes: smallest memory traffic of the task.
        seconds: time for all rounds.
        graphs: also time replays of a CUDA graph of each contestant.
    """
    alive = {name: time_of(it) for name, it in contestants.items() if _started(rows, task, case, name, time_of(it))}
    if not alive:
        return
    start = time.perf_counter()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in alive}
    for number in range(ROUNDS[1]):
        if number >= ROUNDS[0] and time.perf_counter() - start > seconds:
            break
        for name, run in alive.items():
            times[name].append(clocked(run))
    for name, pairs in times.items():
        device, wall = (median(column) for column in zip(*pairs, strict=True))
        rows.write(
            task, case, name, ms=1e3 * device, wall_ms=1e3 * wall, best_ms=1e3 * min(pairs)[0], rounds=len(pairs),
            gflops=flops and flops / device / 1e9, gbs=bytes and bytes / device / 1e9,
        )  # fmt: skip
        if graphs and ON_GPU:
            rows.write(task, case, name, **_of_a_graph(alive[name]))
    for name in alive if error else ():
        found = error(result_of(contestants[name]))
        rows.write(task, case, name, error=found, gate=gate, passes=gate is None or found <= gate)


def clocked(run: Run) -> tuple[float, float]:
    """Return the seconds of a call on the device, by events, and by the wall clock until the device has finished."""
    if not ON_GPU:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start,) * 2
    _scratch().zero_()  # flushes the second-level cache
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3, time.perf_counter() - start


def _started(rows: Rows, task: str, case: str, name: str, run: Run) -> bool:
    """Run a contestant for the first time. An error of CUDA ends the process, because later calls fail, too."""
    start = time.perf_counter()
    try:
        run()
        if ON_GPU:
            torch.cuda.synchronize()
    except Exception as reason:
        rows.write(task, case, name, failed=f"{type(reason).__name__}: {str(reason).partition(chr(10))[0]}")
        if "CUDA error" in str(reason):
            raise
        if ON_GPU:
            torch.cuda.empty_cache()
        return False
    rows.write(task, case, name, first_ms=1e3 * (time.perf_counter() - start))
    return True


def _of_a_graph(run: Run) -> dict[str, Any]:
    """Return the time of a replay, or why there is no graph."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as reason:
        return {"graph_failed": str(reason).splitlines()[0]}
    return {"graph_ms": 1e3 * median(clocked(graph.replay)[0] for _ in range(9))}


_memory: list[torch.Tensor] = []


def _scratch() -> torch.Tensor:
    if not _memory:
        _memory.append(torch.empty(2**28, dtype=torch.uint8, device=DEVICE))
    return _memory[0]
