"""Memory: how much is free, how freed memory is kept, and how large sums are allocated."""

from __future__ import annotations

import ctypes
import math
import mmap
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastprobe.errors import InputError
from fastprobe.runtime.distributed import on_this_machine

_LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_HUGE_PAGE = 2**21


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes that are free on a device, or ``None`` where the system does not report them.

    Processes of ``torchrun`` get an equal part each of the memory of their machine.
    """
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
        return free // on_this_machine()
    return min(free, limit - used) // on_this_machine()


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for later requests, in the whole process, until the process ends.

    Call it only in a process you own. The command line calls it; no function of the library does. glibc returns every
    freed block over 32 MB to the system, so activations come as fresh pages batch after batch: a fifth of a forward
    pass on a CPU (benchmarks/NOTES.md). The process then holds as much memory as it needed at its peak. glibc cannot
    report the settings this replaces, so they cannot be put back. Other C libraries are left alone.
    """
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_MMAP_MAX, 0)
        _LIBC.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed() -> None:
    """Return freed memory to the system, where the C library can.

    No setting changes. Pages that are used again are then counted again.
    """
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def zeros(*shape: int, device: torch.device | str) -> Tensor:
    """Return float64 zeros, in huge pages where the system has them.

    Sums are visited block by block, one row a page, and miss the translation buffer in every block otherwise. The
    memory is a mapping of its own, so the request for huge pages ends with the tensor. Sums that are made in inference
    mode can be added to outside of it.
    """
    size = 8 * math.prod(shape)
    with torch.inference_mode(False):
        if torch.device(device).type != "cpu" or size < _HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.zeros(shape, dtype=torch.float64, device=device)
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(pages, dtype=torch.float64).view(shape).zero_()  # all threads touch the pages, once


def human(size: float) -> str:
    """Return a number of bytes for people to read: ``1.5 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def parse_bytes(size: int | str) -> int:
    """Return a number of bytes that a user wrote: ``8000000000``, ``"8GB"``, ``"1.5 GB"`` or ``"8GiB"``.

    Raises:
        InputError: it is no number of bytes above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kMGT]i?|)B?\s*", str(size)) if not isinstance(size, bool) else None
    if not found or not (count := int(float(found[1]) * UNITS[found[2]])):
        raise InputError(f"memory: must be a number of bytes above 0, like 8GB or 500MB, got {size!r}")
    return count
