"""Measured launch configurations of the Triton kernels, kept in a file for later processes.

Nothing is measured outside :func:`tuning`. A kernel without a measurement runs in its first configuration, so that no
call waits for compilers. All configurations of a kernel give the same bits, so a measurement changes only the time.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastprobe.ops._dispatch.capture import capturing
from fastprobe.runtime.files import replacing

Config = TypeVar("Config")
Timer = Callable[[Callable[[], object]], float]


@dataclass(frozen=True)
class Tuned:
    """Times of one kernel for one class of shapes."""

    kernel: str
    sizes: tuple[int, ...]  # of the class, powers of two
    seconds: dict[str, float]  # by configuration, the default first; infinite where it does not fit on the device

    @property
    def best(self) -> str:
        """The fastest configuration."""
        return min(self.seconds, key=lambda config: self.seconds[config])

    @property
    def gain(self) -> float:
        """Time of the default configuration over that of the fastest."""
        return next(iter(self.seconds.values())) / self.seconds[self.best]


_asked: ContextVar[tuple[Timer, list[Tuned]] | None] = ContextVar("tuning", default=None)


def cache_file() -> Path:
    """Return the path of the measurements: ``fastprobe/tuning.json`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "fastprobe" / "tuning.json"


def device_seconds(run: Callable[[], object]) -> float:
    """Return the seconds that ``run`` takes on the current GPU, best of five after one call that compiles."""
    run()
    times = []
    for _ in range(5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return min(times)


@contextmanager
def tuning(timer: Timer = device_seconds) -> Iterator[list[Tuned]]:
    """Measure the configurations of kernels inside this context, unless the file has them for the shape and device.

    Every configuration of a kernel is compiled for each dtype and runs six times for each class of shapes. The sums of
    a call need twice the memory meanwhile.

    Args:
        timer: returns the seconds that a function takes.

    Yields:
        A list that grows with each measurement.
    """
    found: list[Tuned] = []
    token = _asked.set((timer, found))
    try:
        yield found
    finally:
        _asked.reset(token)


def choose(
    kernel: str,
    sizes: Sequence[int],
    device: torch.device,
    configs: Sequence[Config],
    run: Callable[[Config], object],
) -> Config:
    """Return the configuration to run in: the fastest one measured, or the first.

    Args:
        kernel: its name, and the dtype it is compiled for.
        sizes: sizes of the call; shapes whose sizes round up to the same powers of two are one class.
        device: the device that the kernel runs on.
        configs: the configurations, the default first; their ``repr`` identifies them.
        run: runs the kernel in a configuration, without changing the caller's tensors.
    """
    asked = _asked.get()
    path = cache_file()
    if asked is None and not _measured(path):
        return configs[0]
    classes = [1 << max(0, size - 1).bit_length() for size in sizes]
    key = f"{kernel} {classes} on {_name(device)}, torch {torch.__version__}, triton {_triton_version()}"
    known = {repr(config): config for config in configs}
    found = _measured(path).get(key)
    if found in known:
        return known[found]
    if asked is None or capturing(device):
        return configs[0]
    timer, tuned = asked
    tuned.append(Tuned(kernel, tuple(classes), {name: _seconds(timer, run, config) for name, config in known.items()}))
    best = tuned[-1].best
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_measured(path) | {key: best}, indent=1))
    _read.pop(path, None)
    return known[best]


def _seconds(timer: Timer, run: Callable[[Config], object], config: Config) -> float:
    from triton.runtime.errors import OutOfResources

    try:
        return timer(lambda: run(config))
    except OutOfResources:  # a card with less shared memory than others of its capability
        return math.inf


_read: dict[Path, tuple[float, dict[str, str]]] = {}


def _measured(path: Path) -> dict[str, str]:
    """Return the content of the file, read again when it has changed; empty if it cannot be read."""
    try:
        changed = path.stat().st_mtime
        if path not in _read or _read[path][0] != changed:
            _read[path] = changed, dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
    return _read[path][1]


def _name(device: torch.device) -> Any:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _triton_version() -> str:
    return importlib.metadata.version("triton")
