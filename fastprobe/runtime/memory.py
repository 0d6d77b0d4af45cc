"""Memory: how much there is, before a run that would not fit starts, and how it is held while one goes on."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h of glibc
_MADV_HUGEPAGE = 14


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device; ``None`` where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:  # a container may be allowed less than the machine has
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return min(free, limit - used)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within the block, glibc keeps what is freed for the next request of its size; afterwards it is given back.

    Otherwise every block over 32 MB, and what is freed at the end of the heap, goes back to the kernel at once, and
    activations come as fresh pages batch after batch: a fifth of a forward pass on a CPU (benchmarks/NOTES.md). Does
    nothing where the C library is another one.
    """
    if not hasattr(_LIBC, "mallopt"):
        yield
        return
    _LIBC.mallopt(_M_MMAP_MAX, 0)
    _LIBC.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:  # where glibc's own adjustment ends after the first large block
        _LIBC.mallopt(_M_MMAP_MAX, 65_536)
        _LIBC.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        _LIBC.mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)
        _LIBC.malloc_trim(0)


def give_back_freed() -> None:
    """Hand what was freed back to the system, where the C library can: what is used again is then seen to be."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def zeros(*shape: int, device: torch.device | str) -> Tensor:
    """Float64 zeros, in huge pages where the system has them: sums that are visited block by block, a row a page."""
    if torch.device(device).type != "cpu" or not hasattr(_LIBC, "madvise"):
        return torch.zeros(shape, dtype=torch.float64, device=device)
    out = torch.empty(shape, dtype=torch.float64)
    start = out.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(out.data_ptr() + out.nbytes - start), _MADV_HUGEPAGE)
    return out.zero_()


def human(size: float) -> str:
    """Bytes as a person says them: ``1.5 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
