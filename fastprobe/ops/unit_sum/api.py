"""Sum the rows of a matrix, each over its norm, and find rows that are not finite on the way."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch import cpu_library as _native
from fastprobe.ops._dispatch.operation import operation

ROWS = 2048
"""Rows of a part, few enough to be in a CPU's cache twice."""

ROWS_ON_A_GPU = 65_536
"""There a part costs the wait for one number, and reading rows twice costs little beside products of them."""


class UnitSum(NamedTuple):
    """What :func:`unit_sum` returns."""

    total: Tensor  # (D,) float64
    counted: Tensor  # () int64: rows that have a norm
    finite: Tensor  # () bool: every row that counts has a finite norm


def _check(rows: Tensor, valid: Tensor) -> None:
    if rows.ndim != 2 or not rows.dtype.is_floating_point:
        raise ShapeError(f"unit_sum: rows must be (N, D) floating, got {tuple(rows.shape)} {rows.dtype}")
    if valid.shape != rows.shape[:1] or valid.dtype != torch.bool:
        raise ShapeError(f"unit_sum: valid must be ({len(rows)},) bool, got {tuple(valid.shape)} {valid.dtype}")


@operation(check=_check)
def unit_sum(rows: Tensor, valid: Tensor) -> UnitSum:
    """``sum_n rows[n] / |rows[n]|`` over the rows that count.

    Norms are float32, or float64 for float64 rows; a row whose squares do not fit in them is not finite. Rows of zeros
    are left out, and so are those that are not finite.

    Args:
        rows: ``(N, D)``, any floating dtype, any strides.
        valid: ``(N,)`` bool: the rows that count, whatever the others hold.

    Returns:
        The sum, how many rows are in it, and whether every row that counts was finite.

    Raises:
        ShapeError: ``valid`` does not match ``rows``.
    """
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    count = torch.zeros((), dtype=torch.int64, device=rows.device)
    finite = torch.ones((), dtype=torch.bool, device=rows.device)
    length = ROWS if rows.device.type == "cpu" else ROWS_ON_A_GPU
    for part, counts in zip(rows.split(length), valid.split(length), strict=True):
        norms = torch.linalg.vector_norm(part, dim=1, dtype=wide)
        fine = norms.isfinite()
        finite &= (fine | ~counts).all()
        inverse = torch.where(counts & fine & (norms > 0), 1 / norms, torch.zeros_like(norms))
        if not fine.all():  # 0 times what padding may hold is not 0
            part = part.nan_to_num(0.0, 0.0, 0.0)
        total += (inverse[None] @ part.to(wide))[0]
        count += (inverse > 0).sum()
    return UnitSum(total, count, finite)


def _cpu_refuses(rows: Tensor, valid: Tensor) -> str | None:
    return _native.not_on_a_cpu((valid,)) or _native.cpu_refuses((rows,))


@unit_sum.register("cpu", unless=_cpu_refuses)
def _cpu(rows: Tensor, valid: Tensor) -> UnitSum:
    """``csrc/cpu/unit_sum.cpp``: every row is read from memory once."""
    total = torch.empty(rows.shape[1], dtype=torch.float64)
    valid = valid.contiguous()  # kept here while C++ reads it
    number, finite = _native.cpu_library().unit_sum(
        rows=_native.rows_argument(rows),
        valid=valid.data_ptr(),
        n=len(rows),
        total=total.data_ptr(),
        threads=torch.get_num_threads(),
        isa=_native.chosen_instruction_set(),
    )
    return UnitSum(total, torch.tensor(number), torch.tensor(finite))
