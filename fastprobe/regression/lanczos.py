"""Largest eigenvalues of symmetric operators, by block Lanczos iteration.

A block of vectors Q spans, with its images under an operator A, the Krylov space of Q, A Q, A^2 Q, ... With an
orthonormal basis V of this space, the eigenpairs (θ, s) of V^T A V give Ritz pairs:

    θ,  v = V s                 approximate eigenvalue and eigenvector of A
    ρ = |A v - θ v|             its residual
    |λ - θ| <= ρ^2 / g          for the eigenvalue λ next to θ, with g the distance of θ to the other eigenvalues

The basis is kept orthonormal explicitly (Parlett, The Symmetric Eigenvalue Problem, 1998, chapters 11 and 13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE = 64
"""Up to so many columns, one block spans the whole space."""

COLUMNS = 256
"""Largest size of a basis."""


@dataclass(frozen=True)
class RitzPairs:
    """Ritz pairs of S operators, in ascending order of θ."""

    theta: Tensor  # (S, m)
    rho: Tensor  # (S, m)
    basis: Tensor  # V, (S, d, m)
    weights: Tensor  # s, (S, m, m)

    def vectors(self, number: int) -> Tensor:
        """Return v of the largest θ, ``(S, d, number)``, ascending."""
        return self.basis @ self.weights[:, :, -number:]

    def error(self) -> Tensor:
        """Return ρ^2 / g of the largest θ, ``(S,)``; at most ρ."""
        theta, rho = self.theta, self.rho[:, -1]
        gap = theta[:, -1] - theta[:, -2] if theta.shape[1] > 1 else rho
        return rho.square() / torch.maximum(gap, rho).clamp(min=torch.finfo(theta.dtype).tiny)


def ritz_pairs(
    apply: Callable[[Tensor], Tensor], like: Tensor, block: int, done: Callable[[RitzPairs], bool]
) -> RitzPairs | None:
    """Return Ritz pairs of S symmetric operators.

    Args:
        apply: the operators A, on ``(S, d, block)``.
        like: a ``(S, d, d)`` tensor, for sizes, dtype and device.
        block: vectors of a block; at least the number of equal eigenvalues to find.
        done: takes the pairs so far, and returns True to end the iteration.

    Returns:
        ``None`` if the iteration does not end within ``COLUMNS`` vectors.
    """
    S, d, _ = like.shape
    b = d if d <= WHOLE else block
    most = min(COLUMNS, d) // b
    generator = torch.Generator().manual_seed(0)  # of its own: the random numbers of the process stay as they are
    start = torch.randn(d, b, generator=generator, dtype=torch.float64).to(like).expand(S, d, b)
    basis, projected = like.new_zeros(S, d, most * b), like.new_zeros(S, most * b, most * b)
    Q, look = torch.linalg.qr(start)[0], min(most, 4)
    for step in range(1, most + 1):
        old, new = (step - 1) * b, step * b
        basis[:, :, old:new] = Q
        V = basis[:, :, :new]
        U = apply(Q)
        along = V.mT @ U
        U = U - V @ along
        Q, R = torch.linalg.qr(U)
        Q = torch.linalg.qr(Q - V @ (V.mT @ Q))[0]  # rounding errors of U lie along V, too
        projected[:, :new, old:new] = along
        projected[:, old:new, :new] = along.mT
        if step < look:
            continue
        theta, weights = torch.linalg.eigh(projected[:, :new, :new])
        rho = torch.linalg.vector_norm(R @ weights[:, old:new], dim=1)
        pairs = RitzPairs(theta, rho, V, weights)
        if done(pairs):
            return pairs
        look = min(most, step + step // 2)  # the decomposition of V^T A V takes longer and longer
    return None
