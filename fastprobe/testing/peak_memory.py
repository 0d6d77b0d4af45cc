"""Peak memory of a call, on a GPU or of this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from fastprobe.runtime.memory import give_back_freed


def peak_memory(run: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Return the peak memory in bytes while ``run`` runs, above the memory in use before.

    Args:
        run: the call to measure.
        device: a GPU; for any other device the memory of this process is measured.

    Raises:
        NotImplementedError: the operating system cannot reset the peak of a process; Linux can.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    give_back_freed()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as reason:
        raise NotImplementedError(f"the peak memory of a process cannot be reset here: {reason}") from None
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    """Return an entry of ``/proc/self/status``, which has kilobytes, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
