"""Spectrum of a source: eigenvalues and eigenvectors of its equilibrated scatter matrix.

    S = Σ (x - x̄)(x - x̄)^T                     scatter of x about its mean, (d, d)
    D = diag(S)
    D^-1/2 S D^-1/2 = V L V^T                   equilibrated scatter: the correlations of the columns

Equilibration gives every column length 1, so the eigenvalues do not depend on the units of the columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from torch import Tensor

from fastprobe.errors import NumericalError
from fastprobe.regression.moments import Moments

ACCUMULATION_ERROR = {"float64": 1e-14, "float32": 1e-6, "float16": 1e-6, "bfloat16": 1e-6}
"""Largest error of a Gram entry over sqrt(G_ii G_jj), by the dtype of the rows (tests/ops/gram/test_gram.py)."""

MEMORY = 2**29
"""Bytes of the matrices that one call decomposes."""


@dataclass(frozen=True)
class Spectrum:
    """Mean, scatter and eigendecomposition of one source. They do not depend on targets, ridge or ``rcond``."""

    mean: Tensor  # (d,) about the origin of the moments
    scatter: Tensor  # S, (d, d)
    norms: Tensor  # (d,) of the columns about the origin
    scale: Tensor  # (d,) square root of diag(S); 1 for a constant column
    eigenvalues: Tensor  # (d,), ascending
    vectors: Tensor  # V, (d, d), one eigenvector a column

    @classmethod
    def of(cls, moments: Moments, x: str) -> Spectrum:
        """Decompose one source.

        Raises:
            NumericalError: the moments hold fewer than two tokens.
        """
        ((_, spectrum),) = spectra(moments, [x])
        return spectrum


def spectra(moments: Moments, sources: Iterable[str], memory: int = MEMORY) -> Iterator[tuple[str, Spectrum]]:
    """Yield every source with its spectrum, in ascending order of width.

    On a GPU one library call decomposes several sources of one width. On a CPU a batched call gives the same bits in
    the same time as separate calls (benchmarks/NOTES.md), so each source has its own call.

    Args:
        moments: sums of a plan that covers the sources.
        sources: names of blocks.
        memory: bytes that the matrices of one call may take; a single source may exceed it.

    Raises:
        NumericalError: the moments hold fewer than two tokens.
    """
    widths = moments.plan.widths
    for width, alike in groupby(sorted(sources, key=widths.__getitem__), key=widths.__getitem__):
        fitting = max(1, memory // (3 * 8 * width * width))  # scatters, equilibrated scatters, eigenvectors
        while group := list(islice(alike, 1 if moments.counts.device.type == "cpu" else fitting)):
            yield from zip(group, decompose(moments, group), strict=True)


def decompose(moments: Moments, sources: Iterable[str]) -> list[Spectrum]:
    """Decompose sources of one width in one library call."""
    begun = [_equilibrated(moments, x) for x in sources]
    values, vectors = torch.linalg.eigh(torch.stack([matrix for matrix, *_ in begun]))
    return [Spectrum(*rest, *found) for (_, *rest), *found in zip(begun, values, vectors, strict=True)]


def _equilibrated(moments: Moments, x: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the equilibrated scatter, then mean, scatter, norms and scale."""
    n = moments.counts.sum()
    if n < 2:
        raise NumericalError(f"{x}: must have at least 2 tokens for a fit, got {int(n)}; add rows")
    mean, gram = moments.sum(x).sum(0) / n, moments.cross(x, x).sum(0)
    scatter = gram - n * torch.outer(mean, mean)
    diagonal, squares = scatter.diagonal(), gram.diagonal()
    gamma = ACCUMULATION_ERROR[moments.dtype]
    varies = varying(diagonal, squares, n * (moments.origin(x) + mean).square(), gamma)
    scale = torch.where(varies, diagonal, torch.ones_like(diagonal)).sqrt()
    return scatter / scale[:, None] / scale * varies * varies[:, None], mean, scatter, squares.sqrt(), scale


def varying(scatter: Tensor, squares: Tensor, mean_squares: Tensor, gamma: float) -> Tensor:
    """Return a ``(d,)`` mask of the columns that vary.

        scatter > max(10 gamma squares, 1e-12 (scatter + mean_squares))

    A constant column has a scatter of rounding errors only: of the sums, or of the rows themselves.

    Args:
        scatter: ``(d,)`` sums of squares about the mean.
        squares: ``(d,)`` sums of squares about the origin of the moments.
        mean_squares: ``(d,)`` n times the square of the mean.
        gamma: relative error of the sums.
    """
    return scatter > torch.maximum(10 * gamma * squares, 1e-12 * (scatter + mean_squares))
