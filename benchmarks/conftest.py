"""``duel``: ours and its peers in turn, on the same data, each checked against float64 before anything is timed."""

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
"""Fewest rounds, and fewest where a round takes under 0.2 s; the machines are shared, so more where they are cheap."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tokens", type=int, help="how many bench_fit.py and bench_scan.py take; few unless given")


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
    """A function that runs one duel, see :meth:`Duel.run`; the case is named by the benchmark's parameters."""
    callspec = getattr(request.node, "callspec", None)
    return Duel(benchmark, case=callspec.id if callspec else "").run


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.pop("node")  # whose machine it is says nothing about its speed
    machine_info["device"] = device_name()
    machine_info["threads"] = torch.get_num_threads()
    machine_info["capability"] = torch.backends.cpu.get_cpu_capability()
    machine_info["versions"] = {name: found for name in LIBRARIES if (found := _version(name))}


@dataclass
class Duel:
    """One benchmark: who takes part is settled by a checked run, then everyone runs once a round, in one order."""

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
        """Check every contestant, time them in turn, and keep how many times as fast as each peer ours is.

        Args:
            ours: what is measured; each call does the whole work anew.
            peers: name -> what a user would write otherwise. One that raises ImportError or NotImplementedError is left
                out with that reason; one that misses the gate stays and is printed with its error.
            exact: makes the float64 reference.
            error: of a contestant's result, given the reference; ``None`` where the two cannot be compared.
            gate: largest error that ours may have.
            flops: least work there is, for the rate of ours.
            bytes: least memory traffic there is, for the rate of ours.
        """
        reference = exact()
        own_error = error(ours(), reference)
        assert own_error is not None, "ours gives nothing to compare"
        assert own_error <= gate, f"ours is off by {own_error:.2g}, the gate is {gate:.2g}"
        errors: dict[str, float | None] = {}
        left_out: dict[str, str] = {}
        for name, peer in peers.items():
            try:
                errors[name] = error(peer(), reference)
            except (ImportError, NotImplementedError) as reason:
                left_out[name] = str(reason)
        del reference

        peers = {name: peers[name] for name in errors}
        a_round = seconds(ours) + sum(map(seconds, peers.values()))  # a second warm-up, too
        rounds = max(LONG if a_round >= 0.2 else SHORT, min(25, int(5 / a_round)))
        times: dict[str, list[float]] = {name: [] for name in peers}

        def run_peers() -> None:
            for name, peer in peers.items():
                times[name].append(seconds(peer))
            forget()

        # pytest-benchmark calls `setup` before every round of ours, so the rounds are interleaved.
        self.benchmark.pedantic(lambda: finished(ours), setup=run_peers, rounds=rounds, warmup_rounds=1)
        if self.benchmark.stats is None:  # --benchmark-disable: only the checks were wanted
            return
        own = self.benchmark.stats.stats.data
        self.benchmark.extra_info.update(
            task=self.benchmark.group,
            case=self.case,
            rounds=rounds,
            gate=gate,
            error=own_error,
            seconds=median(own),
            gflops=flops / median(own) / 1e9 if flops else None,
            gbs=bytes / median(own) / 1e9 if bytes else None,
            peers={name: _against(own, times[name][1:], errors[name], gate) for name in peers},
            left_out=left_out,
            device=device_name(),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            load=os.getloadavg()[0],  # ours included: more than the threads means that others were running
        )


def _against(own: list[float], theirs: list[float], error: float | None, gate: float) -> dict[str, Any]:
    ratios = [b / a for a, b in zip(own, theirs, strict=True)]
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
    """What ``run`` returns, once the device is done with it."""
    result = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


def forget() -> None:
    """Fill a GPU's L2 cache with something else."""
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
