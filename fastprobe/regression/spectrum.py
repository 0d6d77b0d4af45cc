"""Scatter of a source about its mean, and the spectrum of the equilibrated scatter.

    S = Σ (x - x̄)(x - x̄)^T                     scatter of x about its mean, (d, d)
    D = diag(S)
    R = D^-1/2 S D^-1/2 = V L V^T               equilibrated scatter: the correlations of the columns

Equilibration gives every column length 1, so the eigenvalues do not depend on the units of the columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastprobe.errors import NumericalError
from fastprobe.regression.moments import Moments

ACCUMULATION_ERROR = {"float64": 1e-14, "float32": 1e-6, "float16": 1e-6, "bfloat16": 1e-6}
"""Largest error of a Gram entry over sqrt(G_ii G_jj), by the dtype of the rows (tests/ops/gram/test_gram.py)."""

ROW_ERROR = {"float64": 2.0**-51, "float32": 2.0**-22, "float16": 2.0**-22, "bfloat16": 2.0**-22}
"""Standard deviation over the mean of a column that holds one number up to rounding errors, by the dtype of the rows.

Two units in the last place. 16-bit rows that differ at all differ by far more.
"""


@dataclass(frozen=True)
class Scatter:
    """Mean and scatter of one source. They do not depend on targets, ridge or ``rcond``."""

    mean: Tensor  # x̄, (d,) about the origin of the moments
    scatter: Tensor  # S, (d, d)
    norms: Tensor  # (d,) of the columns about the origin
    scale: Tensor  # (d,) D^1/2; 1 for a column that is left out
    unresolved: Tensor  # (d,) bool: columns left out that are not constant, for all that the sums can tell
    varies: Tensor  # (d,) bool: the other columns

    @classmethod
    def of(cls, moments: Moments, x: str) -> Scatter:
        """Compute the scatter of one source.

        Raises:
            NumericalError: the moments hold fewer than two tokens.
        """
        n = moments.counts.sum()
        if n < 2:
            raise NumericalError(f"{x}: must have at least 2 tokens for a fit, got {int(n)}; add rows")
        mean, gram = moments.sum(x).sum(0) / n, moments.cross(x, x).sum(0)
        scatter = gram - n * torch.outer(mean, mean)
        diagonal, products, squares = scatter.diagonal(), gram.diagonal(), moments.square(x).sum(0)
        if not products.isfinite().all():
            raise NumericalError(
                f"{x}: the squares of its values overflow {moments.precision}; scale the rows or use exact"
            )
        # Sums of squares do not underflow, float32 products below 1e-38 do.
        held = (products - squares).abs() <= 0.1 * squares
        varies = held & (diagonal > least_scatter(moments, x, products, mean))
        unresolved = ~varies & ((squares > 0) | (mean != 0))
        scale = torch.where(varies, diagonal, torch.ones_like(diagonal)).sqrt()
        return cls(mean, scatter, products.sqrt(), scale, unresolved, varies)

    @property
    def equilibrated(self) -> Tensor:
        """R, (d, d); 0 in the rows and columns of columns that are left out."""
        R = self.scatter / self.scale[:, None]
        R /= self.scale
        return R if self.varies.all() else R.mul_(self.varies).mul_(self.varies[:, None])


@dataclass(frozen=True)
class Spectrum:
    """Eigendecomposition of R, without the unit vectors of the d - e columns that are constant."""

    values: Tensor  # L, (e,), ascending
    vectors: Tensor  # V, (d, e), one eigenvector a column

    @classmethod
    def of(cls, source: Scatter) -> Spectrum:
        """Decompose the equilibrated scatter of one source."""
        constant = ~source.varies
        # -1 is far from the other eigenvalues, so these unit vectors do not mix with eigenvectors near 0.
        values, vectors = torch.linalg.eigh(source.equilibrated - constant.to(source.scale).diag())
        first = int(constant.sum())
        return cls(values[first:], vectors[:, first:] * source.varies[:, None])


def least_scatter(moments: Moments, block: str, squares: Tensor, mean: Tensor) -> Tensor:
    """Return the ``(d,)`` smallest scatter that tells a column from a constant one.

        max(10 gamma squares, ε^2 n (origin + mean)^2)

    The first term is the error of the sums, with gamma of ``ACCUMULATION_ERROR``. The second is that of the rows, with
    ε of ``ROW_ERROR``. A constant column has squares of 0, because its origin is its value.

    Args:
        moments: sums of the block.
        block: name of the block.
        squares: ``(d,)`` sums of squares about the origin of the moments.
        mean: ``(d,)`` about the origin.
    """
    rows = (ROW_ERROR[moments.dtype] * (moments.origin(block) + mean)).square() * moments.counts.sum()
    return torch.maximum(10 * ACCUMULATION_ERROR[moments.precision] * squares, rows)
