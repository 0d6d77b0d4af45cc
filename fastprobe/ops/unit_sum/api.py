"""The operation ``unit_sum``: its arguments, their check, and its definition in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch.operation import operation

ROWS = 2048
"""Rows of a part on a CPU: few enough to be read from a cache the second time."""

ROWS_ON_A_GPU = 65_536
"""Rows of a part on a GPU, where each part costs one wait for the device."""


class UnitSum(NamedTuple):
    """Result of :func:`unit_sum`."""

    total: Tensor  # (D,) float64
    counted: Tensor  # () int64: rows in the sum
    finite: Tensor  # () bool: every valid row has a finite norm


def _check(rows: Tensor, valid: Tensor) -> None:
    if rows.ndim != 2 or not rows.dtype.is_floating_point:
        raise ShapeError(f"unit_sum: rows must be (N, D) floating, got {tuple(rows.shape)} {rows.dtype}")
    if valid.shape != rows.shape[:1] or valid.dtype != torch.bool:
        raise ShapeError(f"unit_sum: valid must be ({len(rows)},) bool, got {tuple(valid.shape)} {valid.dtype}")


@operation(check=_check)
def unit_sum(rows: Tensor, valid: Tensor) -> UnitSum:
    """Return the sum of unit rows, ``sum_n rows[n] / |rows[n]|`` over the valid rows, and check that they are finite.

    Norms are float32, or float64 for float64 rows. A row whose squares overflow them is not finite. Rows of zeros and
    rows that are not finite are left out of the sum.

    Args:
        rows: ``(N, D)``, any floating dtype, any strides.
        valid: ``(N,)`` bool: the rows that are summed and checked; the others may hold anything.

    Returns:
        The sum, the number of rows in it, and whether every valid row is finite.

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
        if not fine.all():  # 0 times a NaN is not 0
            part = part.nan_to_num(0.0, 0.0, 0.0)
        total += (inverse[None] @ part.to(wide))[0]
        count += (inverse > 0).sum()
    return UnitSum(total, count, finite)
