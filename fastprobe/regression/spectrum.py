"""Spectra of sources: eigenvalues and eigenvectors of equilibrated, centred Gram matrices, of several at a time."""

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
"""Bytes of matrices that are decomposed by one call."""


@dataclass(frozen=True)
class Spectrum:
    """What every fit from one source x begins with, whatever its targets, ridge and threshold.

    With S the scatter of x about its mean and D the diagonal of S, D^-1/2 S D^-1/2 = V L V^T.
    """

    mean: Tensor  # (d,) about the origin
    scatter: Tensor  # (d, d)
    norms: Tensor  # (d,) of the columns about the origin
    scale: Tensor  # (d,) root of the diagonal of the scatter; 1 for a column that does not vary
    eigenvalues: Tensor  # (d,), from the smallest
    vectors: Tensor  # (d, d), one a column

    @classmethod
    def of(cls, moments: Moments, x: str) -> Spectrum:
        """The spectrum of one source.

        Raises:
            NumericalError: the moments are of fewer than two tokens.
        """
        ((_, spectrum),) = spectra(moments, [x])
        return spectrum


def spectra(moments: Moments, sources: Iterable[str], memory: int = MEMORY) -> Iterator[tuple[str, Spectrum]]:
    """The spectrum of every source, the narrow ones first.

    On a GPU sources of one width go to the library in one call. On a CPU that would be the same calls one after the
    other, with the same bits and in no less time (benchmarks/NOTES.md).

    Args:
        moments: sums of a plan that covers the sources.
        sources: blocks of it.
        memory: bytes that the matrices of one call may take; one source is taken in any case.

    Raises:
        NumericalError: the moments are of fewer than two tokens.
    """
    widths = moments.plan.widths
    for width, alike in groupby(sorted(sources, key=widths.__getitem__), key=widths.__getitem__):
        fitting = max(1, memory // (3 * 8 * width * width))  # scatters, what is decomposed, vectors
        while group := list(islice(alike, 1 if moments.counts.device.type == "cpu" else fitting)):
            yield from zip(group, decomposed(moments, group), strict=True)


def decomposed(moments: Moments, sources: Iterable[str]) -> list[Spectrum]:
    """The spectra of sources of one width, by one call of the library."""
    begun = [_equilibrated(moments, x) for x in sources]
    values, vectors = torch.linalg.eigh(torch.stack([matrix for matrix, *_ in begun]))
    return [Spectrum(*rest, *found) for (_, *rest), *found in zip(begun, values, vectors, strict=True)]


def _equilibrated(moments: Moments, x: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The matrix to decompose; mean, scatter, norms and scale."""
    n = moments.counts.sum()
    if n < 2:
        raise NumericalError(f"{x}: {int(n)} tokens; a fit needs at least 2")
    mean, gram = moments.sum(x).sum(0) / n, moments.cross(x, x).sum(0)
    scatter = gram - n * torch.outer(mean, mean)
    diagonal, squares = scatter.diagonal(), gram.diagonal()
    gamma = ACCUMULATION_ERROR[moments.dtype]
    varies = varying(diagonal, squares, n * (moments.origin(x) + mean).square(), gamma)
    scale = torch.where(varies, diagonal, torch.ones_like(diagonal)).sqrt()
    return scatter / scale[:, None] / scale * varies * varies[:, None], mean, scatter, squares.sqrt(), scale


def varying(scatter: Tensor, squares: Tensor, mean_squares: Tensor, gamma: float) -> Tensor:
    """Which columns vary: those above the error of their sums and above 1e-6 of their own size.

    Args:
        scatter: ``(d,)`` sums of squares about the mean.
        squares: ``(d,)`` sums of squares about the origin of the moments.
        mean_squares: ``(d,)`` n times the square of the mean.
        gamma: relative error of the sums.
    """
    return scatter > torch.maximum(10 * gamma * squares, 1e-12 * (scatter + mean_squares))
