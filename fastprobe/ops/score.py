"""Apply an affine map and score it against what it stands in for, row by row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastprobe.errors import ShapeError
from fastprobe.ops import _native
from fastprobe.ops._operation import operation
from fastprobe.ops._platform import matmul

ROWS = 512


class RowScores(NamedTuple):
    """Four numbers a row, each ``(N,)`` float32 (float64 for float64 rows); p is the prediction of y."""

    dot: Tensor  # sum of p y
    p_squares: Tensor  # sum of p^2
    y_squares: Tensor  # sum of y^2
    error: Tensor  # sum of (y - p)^2, never made from the other three

    def cosine(self) -> Tensor:
        """Cosine of each row of y with its prediction, (N,); 0 where either is zero."""
        norms = self.p_squares.sqrt() * self.y_squares.sqrt()  # their product first could overflow
        return torch.where(norms > 0, self.dot / norms, torch.zeros_like(norms))


def _check(x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, cross: Tensor | None = None) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeError(f"score: x and y must be (N, D) and (N, K), got {tuple(x.shape)} and {tuple(y.shape)}")
    if coef.shape != (x.shape[1], y.shape[1]) or intercept.shape != (y.shape[1],):
        raise ShapeError(
            f"score: coef and intercept must be {(x.shape[1], y.shape[1])} and {(y.shape[1],)} to match x and y, "
            f"got {tuple(coef.shape)} and {tuple(intercept.shape)}"
        )
    if cross is not None and (cross.shape != coef.shape or cross.dtype != torch.float64):
        raise ShapeError(
            f"score: cross must be {tuple(coef.shape)} float64 like coef, got {tuple(cross.shape)} {cross.dtype}"
        )


@operation(check=_check)
def score(x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, cross: Tensor | None = None) -> RowScores:
    """Score the affine map ``p = x coef + intercept`` against ``y``, row by row.

    Args:
        x: ``(N, D)`` rows, any floating dtype.
        coef: ``(D, K)``.
        intercept: ``(K,)``.
        y: ``(N, K)``, any floating dtype.
        cross: ``(D, K)`` float64; ``x^T (y - p)`` is added to it, in place. It is zero for the least-squares map, and
            what is left of it corrects one that is not quite that.

    Returns:
        The four sums of :class:`RowScores`.

    Raises:
        ShapeError: the shapes do not fit each other.
    """
    wide = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    coef, intercept = coef.to(wide).contiguous(), intercept.to(wide)
    out = torch.empty(4, len(x), dtype=wide, device=x.device)
    for start in range(0, len(x), ROWS):  # few enough rows that what is made of them stays in a cache
        here = slice(start, start + ROWS)
        target = y[here].to(wide)
        rows = x[here].to(wide)
        p = matmul(rows, coef).add_(intercept)
        out[0, here] = (p * target).sum(1)
        out[1, here] = torch.linalg.vector_norm(p, dim=1).square_()
        out[2, here] = torch.linalg.vector_norm(target, dim=1).square_()
        residual = torch.sub(target, p, out=p)
        out[3, here] = torch.linalg.vector_norm(residual, dim=1).square_()
        if cross is not None:
            cross += rows.double().mT @ residual.double()
    return RowScores(*out)


def _cpu_refuses(
    x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, cross: Tensor | None = None
) -> str | None:
    if cross is not None and not cross.is_contiguous():
        return "cross must be contiguous"
    others = (coef, intercept) if cross is None else (coef, intercept, cross)
    return _native.not_on_a_cpu(others) or _native.cpu_refuses((x, y))


@score.register("cpu", unless=_cpu_refuses)
def _cpu(x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, cross: Tensor | None = None) -> RowScores:
    """``csrc/cpu/score.cpp``: a block of rows at a time; what it predicts stays in a cache."""
    out = torch.empty(4, len(x), dtype=torch.float32)
    coef, intercept = coef.float().contiguous(), intercept.float().contiguous()  # kept here while C++ reads them
    _native.cpu_library().score(
        x=_native.rows_argument(x),
        coef=coef.data_ptr(),
        intercept=intercept.data_ptr(),
        y=_native.rows_argument(y),
        n=len(x),
        out=out.data_ptr(),
        cross=0 if cross is None else cross.data_ptr(),
        threads=torch.get_num_threads(),
        isa=_native.chosen_instruction_set(),
    )
    return RowScores(*out)
