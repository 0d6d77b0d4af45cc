"""The operation ``score``: its arguments, their check, and its definition in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops.products import matmul

ROWS = 512
"""Rows that are scored at a time: few enough for their predictions to stay in a cache."""


class RowScores(NamedTuple):
    """Four sums over the columns of each row, ``(N,)`` float32 each (float64 for float64 rows); p predicts y."""

    dot: Tensor  # sum of p y
    p_squares: Tensor  # sum of p^2
    y_squares: Tensor  # sum of y^2
    error: Tensor  # sum of (y - p)^2, computed from y - p and not from the other three

    def cosine(self) -> Tensor:
        """Return the cosine of each row of y and its prediction, ``(N,)``; 0 where one of them is zero."""
        norms = self.p_squares.sqrt() * self.y_squares.sqrt()  # their product first could overflow
        return torch.where(norms > 0, self.dot / norms, torch.zeros_like(norms))


class ResidualSums(NamedTuple):
    """Float64 sums over rows of the residual r = y - p of a map.

    ``cross`` and ``sums`` are zero for the least-squares map. For a map that is close to it, they give the correction.
    """

    cross: Tensor  # (D, K): sum of x r^T
    sums: Tensor  # (K,): sum of r
    squares: Tensor  # (K,): sum of r^2

    @classmethod
    def zero(cls, x_dim: int, y_dim: int, device: torch.device | str = "cpu") -> ResidualSums:
        """Return the sums of no rows."""
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
        residual: sums that the residuals of these rows are added to, in place.

    Returns:
        The four sums of :class:`RowScores`.

    Raises:
        ShapeError: the shapes do not fit each other.
    """
    wide = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    coef, intercept = coef.to(wide).contiguous(), intercept.to(wide)
    out = torch.empty(4, len(x), dtype=wide, device=x.device)
    for start in range(0, len(x), ROWS):
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


def strides_refusal(residual: ResidualSums | None) -> str | None:
    """Return why kernels cannot add to these sums, or ``None``."""
    if residual is None or all(total.is_contiguous() for total in residual):
        return None
    return "the sums of the residual must be contiguous"
