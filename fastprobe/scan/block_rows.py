"""Rows of the blocks of a scan, computed from the points that are held at the end of a layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastprobe.models.points import Point
from fastprobe.scan.plan import ScanPlan


def block_rows(plan: ScanPlan, held: Mapping[Point, Tensor], block: str) -> Tensor:
    """Return the rows of one block, ``(tokens, width)``.

    A block is a point, the sum of two blocks, or the unit-norm rows of another block. Unit-norm rows are float32.

    Args:
        plan: the plan that names the block.
        held: the points that the block needs, each ``(..., width)``.
        block: a name in ``plan.points``.

    Raises:
        KeyError: a point is not held.
    """
    if block in plan.units:
        rows = block_rows(plan, held, plan.units[block]).float()
        return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-30)
    if block in plan.moments.parts:
        first, second = (block_rows(plan, held, part) for part in plan.moments.parts[block])
        # In float32 for 16-bit rows: rounding the sum would add an error that the model does not make.
        return first + second if first.dtype.itemsize >= 4 else first.float() + second.float()
    point = held[plan.points[block]]
    return point.reshape(-1, point.shape[-1])
