"""Whitened coordinates of a source: its scatter becomes the identity, a ridge penalty becomes diagonal.

With S, D, V and L of :mod:`~fastprobe.regression.spectrum`:

    V_r, L_r                                    the r eigenpairs above rcond L_max
    P = D^-1/2 V_r L_r^-1/2                     (d, r)
    z = P^T (x - x̄)                             whitened coordinates of x
    Σ z = 0,   Σ z z^T = P^T S P = I

A map W (r, k) from z is the map P W (d, k) from x. Adding N C, with the columns of N a basis of the directions in
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

from fastprobe.regression.spectrum import Spectrum


@dataclass(frozen=True)
class Whitening:
    """Map P of one source to whitened coordinates, and the ridge penalty in them."""

    spectrum: Spectrum
    kept: Tensor  # (d,) bool: the eigenvalues above rcond times the largest
    eigenvalues: Tensor  # L_r, (r,), ascending
    matrix: Tensor  # P, (d, r)
    ridge: Tensor  # λ, (r,)
    alpha: float
    rcond: float
    gamma: float  # relative error of the sums
    noise: float  # of the eigenvalues, from the rounding errors of the sums

    @classmethod
    def of(cls, spectrum: Spectrum, *, alpha: float, rcond: float, gamma: float) -> Whitening:
        """Compute P and λ.

        Args:
            spectrum: decomposition of the source.
            alpha: ridge penalty.
            rcond: smallest eigenvalue kept, relative to the largest.
            gamma: relative error of the sums.
        """
        eigenvalues, V, scale = spectrum.eigenvalues, spectrum.vectors, spectrum.scale
        kept = (eigenvalues > rcond * eigenvalues[-1]) & (eigenvalues > 0)
        L_r = eigenvalues[kept]
        P = V[:, kept] / L_r.sqrt() / scale[:, None]
        ridge = torch.zeros_like(L_r)
        if alpha and len(L_r):
            N, _ = torch.linalg.qr(V[:, ~kept] / scale[:, None])
            penalised = P - N @ (N.mT @ P)
            p, U = torch.linalg.eigh(penalised.mT @ penalised)
            P = P @ U
            ridge = alpha * p
        noise = 0.2 * gamma * len(scale) ** 0.5  # 0.2: few entries of a Gram have the largest error
        return cls(spectrum, kept, L_r, P, ridge, alpha, rcond, gamma, noise)

    def with_alpha(self, alpha: float) -> Whitening:
        """Return the whitening for another ridge. Both must be above 0: P is the same for all of these."""
        assert alpha > 0 < self.alpha
        return replace(self, alpha=alpha, ridge=self.ridge * (alpha / self.alpha))

    @property
    def rank(self) -> int:
        """Column ``rank``: r, the number of eigenvalues of the equilibrated scatter above ``rcond`` times the largest.

        An integer from 0 to d.
        """
        return self.matrix.shape[1]

    @property
    def condition(self) -> float:
        """Column ``condition``: L_max / L_min over the kept eigenvalues of the equilibrated scatter.

        1 or more; 1 for rank 0. It is the square of the condition number of the centred, equilibrated rows.
        """
        return float(self.eigenvalues[-1] / self.eigenvalues[0]) if self.rank else 1.0
