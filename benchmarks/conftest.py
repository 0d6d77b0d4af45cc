"""``duel``: time our function and its peers in turn on the same data, after a check of all results in float64."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from fastprobe.runtime.memory import keep_freed_memory

Contestant = Callable[[], Any]

LIBRARIES = ("fastprobe", "torch", "triton", "transformers", "scikit-learn", "concept-erasure", "numpy")
LONG, SHORT = 5, 15
"""Smallest number of rounds, and the same if a round takes less than 0.2 s. More rounds, since machines are shared."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tokens", type=int, help="number of tokens in bench_fit.py, bench_scan.py and others")


@pytest.fixture(scope="session", autouse=True)
def freed_memory() -> None:
    """Keep freed memory, for every contestant.

    Library calls leave glibc as it is; the command line asks for this. Rows stay comparable with those measured when
    library calls asked for it, too.
    """
    keep_freed_memory()


@pytest.fixture
def tokens(request: pytest.FixtureRequest) -> int | None:
    return request.config.getoption("--tokens")


@pytest.fixture
def duel(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., None]:
    """Return the function :meth:`Duel.run` of a benchmark. Its parameters name the case."""
    callspec = getattr(request.node, "callspec", None)
    return Duel(benchmark, case=callspec.id if callspec else "").run


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.pop("node")  # the host name does not matter for speed
    machine_info["device"] = device_name()
    machine_info["threads"] = torch.get_num_threads()
    machine_info["capability"] = torch.backends.cpu.get_cpu_capability()
    machine_info["versions"] = {name: found for name in LIBRARIES if (found := _version(name))}


@dataclass
class Duel:
    """A benchmark of ours and its peers. A checked run decides who takes part. Then all run once in each round."""

    benchmark: Any
    case: str

    def run(
        self,
        *,
        ours: Contestant,
        peers: Mapping[str, Contestant],
        exact: Contestant,
        error: Callable[[Any, Any], float | None],
        gate: float,
        flops: float | None = None,
        bytes: float | None = None,
    ) -> None:
        """Check every contestant, time all in turn, and record the speed of ours relative to each peer.

        Args:
            ours: the function to measure. Each call does the whole work again.
            peers: name -> an alternative to ours. A peer that raises ImportError or NotImplementedError is left out,
                with that reason. A peer that misses the gate stays and is printed with its error.
            exact: returns the float64 reference.
            error: returns the error of a result, given the reference; ``None`` if the two cannot be compared.
            gate: largest error allowed for ours.
            flops: smallest number of operations of the task, for the rate of ours.
            bytes: smallest memory traffic of the task, for the rate of ours.
        """
        reference = exact()
        our_error = error(ours(), reference)
        assert our_error is not None, "ours: its result cannot be compared with the reference"
        assert our_error <= gate, f"ours: the error is {our_error:.2g}, above the gate of {gate:.2g}"
        errors: dict[str, float | None] = {}
        left_out: dict[str, str] = {}
        for name, peer in peers.items():
            try:
                errors[name] = error(peer(), reference)
            except (ImportError, NotImplementedError) as reason:
                left_out[name] = str(reason)
        del reference

        peers = {name: peers[name] for name in errors}
        one_round = seconds(ours) + sum(map(seconds, peers.values()))  # also a second warm-up
        rounds = max(LONG if one_round >= 0.2 else SHORT, min(25, int(5 / one_round)))
        times: dict[str, list[float]] = {name: [] for name in peers}

        def run_peers() -> None:
            for name, peer in peers.items():
                times[name].append(seconds(peer))
            forget()

        # pytest-benchmark calls `setup` before every round of ours, so the contestants alternate.
        self.benchmark.pedantic(lambda: finished(ours), setup=run_peers, rounds=rounds, warmup_rounds=1)
        if self.benchmark.stats is None:  # --benchmark-disable: run only the checks
            return
        our_times = self.benchmark.stats.stats.data
        self.benchmark.extra_info.update(
            task=self.benchmark.group,
            case=self.case,
            rounds=rounds,
            gate=gate,
            error=our_error,
            seconds=median(our_times),
            gflops=flops / median(our_times) / 1e9 if flops else None,
            gbs=bytes / median(our_times) / 1e9 if bytes else None,
            peers={name: _relative_speed(our_times, times[name][1:], errors[name], gate) for name in peers},
            left_out=left_out,
            device=device_name(),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            load=os.getloadavg()[0],  # includes ours; above the number of threads, other programs were running
        )


def _relative_speed(our_times: list[float], theirs: list[float], error: float | None, gate: float) -> dict[str, Any]:
    ratios = [b / a for a, b in zip(our_times, theirs, strict=True)]
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
    error = None if error is None or math.isnan(error) else error
    return {
        "ratio": middle,
        "iqr": [low, high],
        "seconds": median(theirs),
        "error": error,
        "passes": None if error is None else error <= gate,
    }


def finished(run: Contestant) -> Any:
    """Return the result of ``run`` after the device has finished."""
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def forget() -> None:
    """Flush the L2 cache of a GPU."""
    if torch.cuda.is_available():
        torch.empty(2**28, dtype=torch.uint8, device="cuda").zero_()
        torch.cuda.synchronize()


def seconds(run: Contestant) -> float:
    forget()
    start = time.perf_counter()
    finished(run)
    return time.perf_counter() - start


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
