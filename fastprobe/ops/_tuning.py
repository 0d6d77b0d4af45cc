"""Which configuration of a kernel is fastest, measured where one asks for it and kept for every later process.

Without a measurement a kernel runs in its first configuration, so that no first call waits for compilers.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastprobe.files import replacing

Config = TypeVar("Config")
Timer = Callable[[Callable[[], object]], float]

_timer: ContextVar[Timer | None] = ContextVar("timer", default=None)


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
def tuning(timer: Timer = device_seconds) -> Iterator[None]:
    """Inside this context kernels measure their configurations where it was not done for such a shape and device.

    Args:
        timer: seconds that a function takes.
    """
    token = _timer.set(timer)
    try:
        yield
    finally:
        _timer.reset(token)


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
    timer = _timer.get()
    path = cache_file()
    if timer is None and not _measured(path):
        return configs[0]
    classes = [1 << max(0, size - 1).bit_length() for size in sizes]
    key = f"{kernel} {classes} on {_name(device)}, torch {torch.__version__}, triton {_triton_version()}"
    known = {repr(config): config for config in configs}
    found = _measured(path).get(key)
    if found in known:
        return known[found]
    if timer is None or _capturing(device):
        return configs[0]
    seconds = {name: timer(lambda config=config: run(config)) for name, config in known.items()}  # type: ignore[misc]
    best = min(seconds, key=lambda name: seconds[name])
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_measured(path) | {key: best}, indent=1))
    _read.pop(path, None)
    return known[best]


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


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _name(device: torch.device) -> Any:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _triton_version() -> str:
    return importlib.metadata.version("triton")
