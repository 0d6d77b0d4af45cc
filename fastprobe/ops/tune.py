"""Which configuration of a kernel is fastest, measured where one asks for it and kept for every later process.

Without a measurement a kernel runs in its first configuration, so that no first call waits for compilers. All of a
kernel's configurations give the same bits: a measurement changes how long a result takes, and nothing else.
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
    """What was measured for one class of shapes."""

    kernel: str
    sizes: tuple[int, ...]  # powers of two, of the class
    seconds: dict[str, float]  # by configuration, the default first; infinite where it does not fit on the device

    @property
    def best(self) -> str:
        """The configuration that is kept."""
        return min(self.seconds, key=lambda config: self.seconds[config])

    @property
    def gain(self) -> float:
        """How many times as fast as the default it is."""
        return next(iter(self.seconds.values())) / self.seconds[self.best]


_asked: ContextVar[tuple[Timer, list[Tuned]] | None] = ContextVar("tuning", default=None)


def cache_file() -> Path:
    """Where measurements are kept: ``fastprobe/tuning.json`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "fastprobe" / "tuning.json"


def device_seconds(run: Callable[[], object]) -> float:
    """Seconds of ``run`` on the current GPU, best of five after one that compiles."""
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
    """Inside this context kernels measure their configurations where it was not done for such a shape and device.

    It takes a compilation for every configuration, kernel and dtype, six runs for every class of shapes, and beside the
    sums of a call as much memory again.

    Args:
        timer: seconds that a function takes.

    Yields:
        What was measured, as it is.
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
    """The configuration to run in: what was measured to be fastest, or the first.

    Args:
        kernel: its name and what else it is compiled for.
        sizes: numbers that are one class of shapes where they round up to the same powers of two.
        device: that it runs on.
        configs: what may be chosen, the default first; they print as what they are.
        run: runs the kernel in one of them, leaving the caller's tensors as they are.
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
    except OutOfResources:  # of a card with less shared memory than its kin
        return math.inf


_read: dict[Path, tuple[float, dict[str, str]]] = {}


def _measured(path: Path) -> dict[str, str]:
    """What the file holds, read again when it has changed; nothing where there is none that can be read."""
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
