"""What the host knows of an origin: which columns it moves. GPU backends choose memory and kernels by it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class Moved:
    """The columns that an origin moves."""

    columns: Tensor  # int32, on the device: where the origin is not zero
    fits: frozenset[torch.dtype]  # 16-bit dtypes that represent the origin exactly
    version: int | None  # of the origin's tensor; None for a tensor that does not count its changes


_moved: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def moved_by(origin: Tensor) -> Moved:
    """Return the columns that an origin moves.

    The first call for a tensor, and the first after a change of it, wait for the device. Every call does for a tensor
    that was made in ``torch.inference_mode()``, because torch does not count its changes.
    """
    version = None if origin.is_inference() else origin._version
    known = _moved.get(origin)
    if known is None or version is None or known.version != version:
        fits = [dtype for dtype in (torch.bfloat16, torch.float16) if bool((origin.to(dtype) == origin).all())]
        known = _moved[origin] = Moved(origin.nonzero().flatten().int(), frozenset(fits), version)
    return known
