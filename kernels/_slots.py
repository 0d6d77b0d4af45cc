"""Rows in the order of their folds, cut into slots, so that one program adds up rows of one fold only.

This file does not use Triton. The CUDA kernels use it too, with slots of one slab each
(``fastprobe/ops/gram/cuda_launches.py``).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Slots(NamedTuple):
    """The places of the rows of every fold. N and F give the shapes, so that nothing waits for the device."""

    order: Tensor  # (N,) int64: rows sorted by fold, stably; rows of no fold are in no slot
    start: Tensor  # (S,) int64: a slot's first place in the order
    end: Tensor  # (S,) int64: one past its last place; equal to start in unused slots
    fold_end: Tensor  # (F,) int64: one past the last slot of a fold; its first slot is the end of the fold before


def slots_of(fold: Tensor, folds: int, length: int, unit: int | None = None) -> Slots:
    """Cut rows into slots of at most ``length`` rows. The slots of a fold have one length, but for the last of them.

    Args:
        fold: ``(N,)`` int64; rows below 0 or not below ``folds`` are left out.
        folds: F, the number of folds.
        length: of a slot, in rows, at most.
        unit: slots have a multiple of as many rows; ``length`` is a multiple of it, and the default.
    """
    unit = unit or length
    device, n = fold.device, len(fold)
    key = fold.clamp(-1, folds)
    if folds < 127:
        key = key.to(torch.int8)  # one pass of a radix sort instead of eight
    key, order = key.sort(stable=True)
    edges = torch.searchsorted(key, torch.arange(folds + 1, device=device, dtype=key.dtype))
    first, last = edges[:-1], edges[1:]
    count = (last - first + length - 1) // length
    fold_end = count.cumsum(0)
    slot = torch.arange(-(-n // length) + folds, device=device)
    owner = torch.searchsorted(fold_end, slot, right=True)
    spare, owner = owner == folds, owner.clamp(max=folds - 1)
    step = (count * unit).clamp(min=unit)  # rows of a fold that has a unit in every slot
    even = ((last - first + step - 1) // step).clamp(min=1) * unit
    start = first[owner] + (slot - (fold_end - count)[owner]) * even[owner]
    start = torch.minimum(start, last[owner])
    end = torch.minimum(start + even[owner], last[owner])
    return Slots(order, start, torch.where(spare, start, end), fold_end)
