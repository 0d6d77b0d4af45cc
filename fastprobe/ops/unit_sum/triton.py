"""``unit_sum`` on the Triton kernel: ``kernels/unit_sum.py``, as an operator of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastprobe.ops._dispatch import triton as dispatch
from fastprobe.ops._dispatch.trial import near, normal
from fastprobe.ops.unit_sum.api import UnitSum, unit_sum

WIDEST = 32_768
"""Most columns of a row that stays in registers."""


def _refuses(rows: Tensor, valid: Tensor) -> str | None:
    if not 0 < rows.shape[1] <= WIDEST:
        return f"it takes 1 to {WIDEST} columns, not {rows.shape[1]}"
    return dispatch.refuses((rows, valid), (rows,))


def _passed_over(rows: Tensor, valid: Tensor) -> bool:
    return dispatch.passed_over([rows], unit_sum_agrees)


def unit_sum_agrees(device: torch.device) -> bool:
    """Return whether :func:`launch_unit_sum` gives the sum of torch on a device."""
    (rows,) = normal(device, (300, 200))
    valid = torch.arange(300, device=device) % 3 > 0
    rows[7] = float("nan")
    found = launch_unit_sum(rows, valid)
    kept = rows[valid & rows.isfinite().all(1)].double()
    exact = (kept / torch.linalg.vector_norm(kept, dim=1, keepdim=True)).sum(0)
    return near(found.total, exact) and int(found.counted) == len(kept) and not bool(found.finite)


@unit_sum.register("triton", unless=_refuses, passed_over=_passed_over)
def launch_unit_sum(rows: Tensor, valid: Tensor) -> UnitSum:
    """Sum with ``kernels/unit_sum.py``, which reads every row from memory once and waits for nothing.

    Args:
        rows: see :func:`fastprobe.ops.unit_sum.unit_sum`; already checked.
        valid: the same.
    """
    return UnitSum(*unit_sum_operator(rows, valid))


@torch.library.custom_op("fastprobe::triton_unit_sum", mutates_args=())
def unit_sum_operator(rows: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run :func:`launch_unit_sum` as an operator of torch."""
    from fastprobe.kernels import unit_sum as kernels

    if len(rows):
        return kernels.launch_unit_sum(rows, valid)
    total, number = (
        torch.zeros(shape, dtype=dtype, device=rows.device)
        for shape, dtype in ((rows.shape[1:], torch.float64), ((), torch.int64))
    )
    return total, number, torch.ones((), dtype=torch.bool, device=rows.device)


@unit_sum_operator.register_fake
def _(rows: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        rows.new_empty(rows.shape[1:], dtype=torch.float64),
        rows.new_empty((), dtype=torch.int64),
        rows.new_empty((), dtype=torch.bool),
    )
