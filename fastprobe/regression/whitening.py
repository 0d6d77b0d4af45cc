"""Whitened coordinates of a source: its scatter becomes the identity, a ridge penalty becomes diagonal.

With S, D and R of :mod:`~fastprobe.regression.spectrum`, and N, Π and G of :mod:`~fastprobe.regression.deflation`:

    P = D^-1/2 Π G^-T                           (d, d)
    z = P^T (x - x̄)                             whitened coordinates of x
    Σ z = 0,   Σ z z^T = P^T S P = I - Q Q^T,   Q = L_max^1/2 G^-1 N,   Q^T Q = I

z has d numbers and lies in the r dimensions at right angles to Q. There Σ z z^T is the identity, and P^T Y has no part
along Q for any Y. So I stands for I - Q Q^T in what follows. A source that cannot be deflated has the coordinates

    V_r, L_r                                    the r eigenpairs of R above rcond L_max
    P = D^-1/2 V_r L_r^-1/2                     (d, r)
    Σ z z^T = P^T S P = I

Both have the same maps P W: those whose rows, D^1/2 P W, are combinations of the eigenvectors that are kept. G is
triangular: with K = D^1/2 G, each of these is one triangular solve, half the operations of a product.

    P^T Y = K^-1 Π_D Y,         Π_D = D^1/2 Π D^-1/2
    P W   = Π_D^T K^-T W

A map W (., k) from z is the map P W (d, k) from x. Adding N C, with the columns of N now a basis of the directions in
which x is constant, changes no prediction. The ridge penalty counts the shortest of these maps:

    alpha min_C |P W + N C|_F^2  =  alpha |(I - N N^T) P W|_F^2  =  alpha <W, Q W>,   N^T N = I
    Q = P^T (I - N N^T) P = U diag(p) U^T

Replacing P by P U keeps P^T S P = I and makes the penalty diagonal: Σ_i λ_i |W_i|^2 with λ = alpha p. With
B = Σ z (y - ȳ)^T the penalised least-squares map is then, row by row,

    W = (I + Λ)^-1 B,   Λ = diag(λ)             Λ = 0 without a ridge
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastprobe.regression.deflation import Deflation
from fastprobe.regression.spectrum import Scatter, Spectrum


@dataclass(frozen=True)
class Whitening:
    """Map P of one source to c whitened coordinates, and the ridge penalty in them."""

    source: Scatter
    rank: int  # column ``rank``: r, the number of eigenvalues of R above rcond times the largest, from 0 to d
    largest: float  # L_max; 1 for rank 0
    smallest: float  # smallest eigenvalue kept; 1 for rank 0
    left_out: Tensor  # (p,) eigenvalues that are not kept, without those of constant columns
    null: Tensor  # (d, p) eigenvectors of these
    matrix: Tensor  # P, (d, c)
    factor: Tensor | None  # K, (d, d); None if P is not triangular
    eigenvalues: Tensor | None  # L_r, (r,), if P comes from eigenvectors and there is no ridge
    ridge: Tensor  # λ, (c,)
    alpha: float
    rcond: float
    gamma: float  # relative error of the sums
    method: str  # "cholesky" or "eigh"

    @classmethod
    def of(cls, source: Scatter, found: Deflation | Spectrum, *, alpha: float, rcond: float, gamma: float) -> Whitening:
        """Compute P and λ.

        Args:
            source: the source.
            found: its deflation for the same ``rcond``, or its spectrum.
            alpha: ridge penalty.
            rcond: smallest eigenvalue kept, relative to the largest.
            gamma: relative error of the sums.
        """
        whiten = cls._deflated if isinstance(found, Deflation) else cls._decomposed
        plain = whiten(source, found, rcond, gamma)  # type: ignore[arg-type]
        return plain.with_alpha(alpha) if alpha and plain.rank else replace(plain, alpha=alpha)

    @classmethod
    def _deflated(cls, source: Scatter, found: Deflation, rcond: float, gamma: float) -> Whitening:
        varies, scale, N = source.varies, source.scale, found.null * source.varies[:, None]
        P = found.inverse.mT - N @ (N.mT @ found.inverse.mT)
        P = P / scale[:, None] * varies[:, None]
        rank = int(varies.sum()) - N.shape[1]
        K = scale[:, None] * found.factor
        ends = found.largest, found.smallest, found.left_out, N
        return cls(source, rank, *ends, P, K, None, P.new_zeros(len(P)), 0.0, rcond, gamma, "cholesky")

    @classmethod
    def _decomposed(cls, source: Scatter, found: Spectrum, rcond: float, gamma: float) -> Whitening:
        L, V = found.values, found.vectors
        kept = (rcond * L[-1:] < L) & (L > 0)
        L_r = L[kept]
        P = V[:, kept] / L_r.sqrt() / source.scale[:, None]
        ends = (float(L_r[-1]), float(L_r[0])) if len(L_r) else (1.0, 1.0)
        rest = L[~kept], V[:, ~kept]
        return cls(source, len(L_r), *ends, *rest, P, None, L_r, torch.zeros_like(L_r), 0.0, rcond, gamma, "eigh")

    def with_alpha(self, alpha: float) -> Whitening:
        """Return the whitening for a ridge above 0. P is the same for all of these."""
        assert alpha > 0
        if self.alpha:
            return replace(self, alpha=alpha, ridge=self.ridge * (alpha / self.alpha))
        source, constant = self.source, (~self.source.varies).nonzero()[:, 0]
        unit = torch.eye(len(source.scale), dtype=self.matrix.dtype, device=self.matrix.device)[:, constant]
        N, _ = torch.linalg.qr(torch.cat([self.null / source.scale[:, None], unit], 1))
        P = self.matrix
        if self.factor is not None:  # the r coordinates at right angles to Q and to those of constant columns
            Q = torch.linalg.solve_triangular(self.factor, source.scale[:, None] * self.null, upper=False)
            P = P @ torch.linalg.qr(torch.cat([Q, unit], 1), mode="complete")[0][:, P.shape[1] - self.rank :]
        penalised = P - N @ (N.mT @ P)
        p, U = torch.linalg.eigh(penalised.mT @ penalised)
        return replace(self, matrix=P @ U, factor=None, eigenvalues=None, ridge=alpha * p, alpha=alpha)

    @property
    def noise(self) -> float:
        """Error of the eigenvalues from the rounding errors of the sums."""
        return 0.2 * self.gamma * len(self.source.scale) ** 0.5  # 0.2: few entries of a Gram have the largest error

    def coordinates(self, Y: Tensor) -> Tensor:
        """Return P^T Y, (c, k). Y (d, k) may be overwritten."""
        if self.factor is None:
            return self.matrix.mT @ Y
        Y = self.projected(Y)
        return torch.linalg.solve_triangular(self.factor, Y, upper=False, out=Y)

    def map(self, W: Tensor) -> Tensor:
        """Return P W, (d, k)."""
        if self.factor is None:
            return self.matrix @ W
        out = torch.linalg.solve_triangular(self.factor.mT, W, upper=True, out=torch.empty_like(W))
        if self.null.shape[1]:
            scale = self.source.scale[:, None]
            out -= (self.null / scale) @ ((self.null * scale).mT @ out)
        if not self.source.varies.all():
            out *= self.source.varies[:, None]
        return out

    def projected(self, Y: Tensor) -> Tensor:
        """Return Π_D Y, (d, k), in the memory of Y."""
        if self.null.shape[1]:
            scale = self.source.scale[:, None]
            Y.addmm_(self.null * scale, (self.null / scale).mT @ Y, alpha=-1)
        if not self.source.varies.all():
            Y *= self.source.varies[:, None]
        return Y

    @property
    def condition(self) -> float:
        """Column ``condition``: L_max / L_min over the kept eigenvalues of the equilibrated scatter.

        1 or more; 1 for rank 0. It is the square of the condition number of the centred, equilibrated rows.
        """
        return self.largest / self.smallest
