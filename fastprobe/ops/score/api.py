"""Apply an affine map and score it against what it stands in for, row by row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch import cpu_library as _native
from fastprobe.ops._dispatch import triton as _triton
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops.products import matmul
from fastprobe.ops.score import triton

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


class ResidualSums(NamedTuple):
    """Sums over rows of what a map leaves, r = y - p, that rows are added to; float64.

    ``cross`` and ``sums`` are zero for the least-squares map; what is left of them corrects one that is not quite that.
    """

    cross: Tensor  # (D, K): sum of x r^T
    sums: Tensor  # (K,): sum of r
    squares: Tensor  # (K,): sum of r^2

    @classmethod
    def zero(cls, x_dim: int, y_dim: int, device: torch.device | str = "cpu") -> ResidualSums:
        """The sums of no rows."""
        return cls(
            *(torch.zeros(shape, dtype=torch.float64, device=device) for shape in ((x_dim, y_dim), (y_dim,), (y_dim,)))
        )


def _check(x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, residual: ResidualSums | None = None) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeError(f"score: x and y must be (N, D) and (N, K), got {tuple(x.shape)} and {tuple(y.shape)}")
    if coef.shape != (x.shape[1], y.shape[1]) or intercept.shape != (y.shape[1],):
        raise ShapeError(
            f"score: coef and intercept must be {(x.shape[1], y.shape[1])} and {(y.shape[1],)} to match x and y, "
            f"got {tuple(coef.shape)} and {tuple(intercept.shape)}"
        )
    if residual is not None:
        shapes = (coef.shape, intercept.shape, intercept.shape)
        for name, total, shape in zip(residual._fields, residual, shapes, strict=True):
            if total.shape != shape or total.dtype != torch.float64:
                raise ShapeError(
                    f"score: residual.{name} must be {tuple(shape)} float64, got {tuple(total.shape)} {total.dtype}"
                )


@operation(check=_check)
def score(x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, residual: ResidualSums | None = None) -> RowScores:
    """Score the affine map ``p = x coef + intercept`` against ``y``, row by row.

    Args:
        x: ``(N, D)`` rows, any floating dtype.
        coef: ``(D, K)``.
        intercept: ``(K,)``.
        y: ``(N, K)``, any floating dtype.
        residual: sums that these rows are added to, in place.

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
        left = torch.sub(target, p, out=p)
        out[3, here] = torch.linalg.vector_norm(left, dim=1).square_()
        if residual is not None:
            left = left.double()
            residual.cross.add_(rows.double().mT @ left)
            residual.sums.add_(left.sum(0))
            residual.squares.add_(left.square_().sum(0))
    return RowScores(*out)


def _cpu_refuses(
    x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, residual: ResidualSums | None = None
) -> str | None:
    if residual is not None and not all(total.is_contiguous() for total in residual):
        return "the sums of the residual must be contiguous"
    return _native.not_on_a_cpu((coef, intercept, *(residual or ()))) or _native.cpu_refuses((x, y))


@score.register("cpu", unless=_cpu_refuses)
def _cpu(x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, residual: ResidualSums | None = None) -> RowScores:
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
        residual=tuple(total.data_ptr() for total in residual) if residual else (0, 0, 0),
        threads=torch.get_num_threads(),
        isa=_native.chosen_instruction_set(),
    )
    return RowScores(*out)


def _triton_refuses(
    x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, residual: ResidualSums | None = None
) -> str | None:
    if residual is not None and not all(total.is_contiguous() for total in residual):
        return "the sums of the residual must be contiguous"
    return _triton.refuses((x, coef, intercept, y, *(residual or ())), (x, y))


@score.register(
    "triton", unless=_triton_refuses, passed_over=lambda x, *_, **__: _triton.passed_over([x], triton.score_agrees)
)
def _on_triton(
    x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, residual: ResidualSums | None = None
) -> RowScores:
    """``kernels/score.py``, and ``kernels/gram.py`` for the sums of what is left."""
    return RowScores(*triton.score(x, coef, intercept, y, list(residual or ())))
