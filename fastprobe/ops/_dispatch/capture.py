"""Graph capture: while torch records operations, a tensor has no values that Python could read."""

from __future__ import annotations

import torch
from torch import Tensor


def capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph is being captured on the current stream of ``device``."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def may_wait_for(tensor: Tensor) -> bool:
    """Return whether Python may read a value of ``tensor``: not under ``torch.compile`` or graph capture."""
    return not torch.compiler.is_compiling() and not capturing(tensor.device)
