"""Ends of the spectrum of a source, and a Cholesky factor of the rest: what fits need in place of all eigenvectors.

R is the equilibrated scatter of :mod:`~fastprobe.regression.spectrum`, with largest eigenvalue L_max. N (d, p) holds
orthonormal eigenvectors of the eigenvalues at or below θ = rcond L_max: the directions that a fit leaves out.

    Π = I - N N^T                               projector on the directions that are kept
    Π R Π + L_max N N^T = G G^T                 G lower triangular, (d, d)

The matrix on the left has the kept eigenvectors and eigenvalues of R, and L_max in place of those left out. Columns
that are constant have rows of 0 in R; they are left out in the same way, with N extended by unit vectors.

1. L_max: Lanczos iteration on R.
2. N: none if R - θ I has a Cholesky factor, since all eigenvalues then exceed θ. Else block Lanczos iteration on
   (R + θ I)^-1, whose largest eigenvalues 1 / (λ + θ) belong to the smallest λ of R.
3. N is complete if Π R Π + L_max N N^T - θ I has a Cholesky factor. Its p Rayleigh quotients are at or below θ, so p
   eigenvalues are (Courant and Fischer). Together the two tests count the eigenvalues below θ exactly.
4. The smallest eigenvalue kept: Lanczos iteration on (G G^T)^-1.

There is no deflation, and :class:`~fastprobe.regression.spectrum.Spectrum` is needed, if there are more than ``MOST``
directions to leave out, if an iteration does not end, or if an eigenvalue is as near to θ as its rounding error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastprobe.regression.lanczos import RitzPairs, ritz_pairs
from fastprobe.regression.spectrum import Scatter

NARROW = 128
"""Below so many columns an eigendecomposition takes less time."""

MOST = 16
"""Largest number of directions to leave out; also the size of the blocks that find them."""

VALUE_ERROR = 1e-10
"""Relative error of the largest and smallest eigenvalue."""


@dataclass(frozen=True)
class Deflation:
    """Ends of the spectrum of R, and the Cholesky factor of the rest."""

    largest: float  # L_max
    smallest: float  # of the eigenvalues above θ
    left_out: Tensor  # (p,) eigenvalues at or below θ, without those of constant columns
    null: Tensor  # N, (d, p), without the unit vectors of constant columns
    factor: Tensor  # G, (d, d)
    inverse: Tensor  # G^-1, (d, d)


def deflations(sources: Sequence[Scatter], rcond: float) -> list[Deflation | None]:
    """Deflate sources of one width together, by batched calls; ``None`` for a source that needs all eigenvectors."""
    d = len(sources[0].scale)
    if d < NARROW:
        return [None] * len(sources)
    R = torch.stack([source.equilibrated for source in sources])
    constant = ~torch.stack([source.varies for source in sources])
    found = _deflated(R, constant, rcond)
    if found is None and len(sources) > 1:  # one source can hold up the iteration of all
        return [deflations([source], rcond)[0] for source in sources]
    return [None] * len(sources) if found is None else list(found)


def _deflated(R: Tensor, constant: Tensor, rcond: float) -> Iterator[Deflation | None] | None:
    """Deflate R, (S, d, d); ``None`` if an iteration does not end or N is not complete."""
    rounding = 8 * torch.finfo(R.dtype).eps * R.shape[1] ** 0.5  # of an eigenvalue, relative to L_max
    if rcond < 4 * rounding or not R.any(dim=(1, 2)).all():
        return None
    top = ritz_pairs(lambda q: R @ q, R, 1, _known)
    if top is None:
        return None
    L_max = top.theta[:, -1]
    theta = rcond * L_max
    identity = torch.eye(R.shape[1], dtype=R.dtype, device=R.device)
    R = R + (constant * L_max[:, None]).diag_embed()
    N = R.new_zeros(*R.shape[:2], 0)
    if torch.linalg.cholesky_ex(R - theta[:, None, None] * identity)[1].any():
        small = _small_directions(R, identity, theta, rounding * L_max)
        if small is None:
            return None
        N = small
        RN = R @ N
        R = R - N @ RN.mT
        R = R - (R @ N) @ N.mT + L_max[:, None, None] * N @ N.mT
        R = (R + R.mT) / 2
        if torch.linalg.cholesky_ex(R - theta[:, None, None] * identity)[1].any():
            return None
        left_out = (N * RN).sum(1)
    else:
        left_out = R.new_zeros(len(R), 0)
    G, failed = torch.linalg.cholesky_ex(R)
    if failed.any():
        return None
    inverse = torch.linalg.solve_triangular(G, identity.expand_as(G), upper=False)
    bottom = ritz_pairs(lambda q: inverse.mT @ (inverse @ q), R, 1, _known)
    if bottom is None:
        return None
    L_min = 1 / bottom.theta[:, -1]
    return _each(L_max, L_min, left_out, N, G, inverse, theta, rounding * L_max)


def _each(
    L_max: Tensor,
    L_min: Tensor,
    left_out: Tensor,
    N: Tensor,
    G: Tensor,
    inverse: Tensor,
    theta: Tensor,
    rounding: Tensor,
) -> Iterator[Deflation | None]:
    """Yield the deflation of each source; ``None`` for one with an eigenvalue too near to θ to compare them."""
    for s in range(len(G)):
        p = N[s].any(dim=0)  # columns of 0 fill up N where other sources leave out more
        values = left_out[s][p]
        near = (torch.cat([values, L_min[s, None]]) - theta[s]).abs() <= rounding[s]
        yield (
            None if near.any() else Deflation(float(L_max[s]), float(L_min[s]), values, N[s][:, p], G[s], inverse[s])
        )


def _known(pairs: RitzPairs) -> bool:
    """Return True if the largest eigenvalue is known."""
    return bool((pairs.error() <= VALUE_ERROR * pairs.theta[:, -1]).all())


def _small_directions(R: Tensor, identity: Tensor, theta: Tensor, rounding: Tensor) -> Tensor | None:
    """Return eigenvectors of R of the eigenvalues at or below θ, (S, d, p), zero columns where a source has fewer.

    Args:
        R: ``(S, d, d)``.
        identity: ``(d, d)``.
        theta: ``(S,)``.
        rounding: ``(S,)`` rounding error of an eigenvalue; an eigenvector is found when its residual is at most this.
    """
    F, failed = torch.linalg.cholesky_ex(R + theta[:, None, None] * identity)
    if failed.any():
        return None
    inverse = torch.linalg.solve_triangular(F, identity.expand_as(F), upper=False)
    found: list[Tensor] = []

    def done(pairs: RitzPairs) -> bool:
        below = (pairs.theta >= 1 / (2 * theta[:, None])).sum(1)  # 1 / (λ + θ) with λ <= θ
        p = int(below.max())
        if p > MOST:
            return True
        if not p:
            return False
        wanted = torch.arange(p, device=R.device) >= p - below[:, None]
        v = pairs.vectors(p) * wanted[:, None]
        Rv = R @ v
        residual = torch.linalg.vector_norm(Rv - v * (v * Rv).sum(1, keepdim=True), dim=1)
        if (residual > rounding[:, None]).any():
            return False
        found.append(v)
        return True

    ritz_pairs(lambda q: inverse.mT @ (inverse @ q), R, MOST, done)
    return found[0] if found else None
