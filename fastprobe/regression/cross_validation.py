"""Cross-validation from moments: the fit without fold f, and its squared error on fold f, from sums alone.

Symbols. Fold f has n_f tokens, the other folds have m_f = n - n_f. z = P^T (x - x̄) are whitened coordinates of x,
Λ is the ridge in them (:mod:`~fastprobe.regression.whitening`), u = y - ȳ. Means are over all tokens. Σ_f sums over the
tokens of fold f, Σ_¬f over the other tokens, Σ over all tokens: Σ z = 0, Σ z z^T = I, Σ u = 0. <A, B> = Σ_ij A_ij B_ij.

1. Centring. Moments are about an origin. With s = Σ_f x and G = Σ_f x y^T about the origins,

    Σ_f (x - x̄)(y - ȳ)^T = G - s_x ȳ^T - x̄ (s_y - n_f ȳ)^T                     centred_products

2. Sums of fold f.

    a_f = Σ_f z            = P^T (s_x - n_f x̄)
    A_f = Σ_f z z^T        = P^T [Σ_f (x - x̄)(x - x̄)^T] P
    t_f = Σ_f u            = s_y - n_f ȳ
    B_f = Σ_f z u^T        = P^T [Σ_f (x - x̄)(y - ȳ)^T],      B = Σ_f B_f
    q_f = Σ_f |u|^2        = Σ_f |y|^2 - 2 s_y · ȳ + n_f |ȳ|^2

3. Sums of the other tokens. The sums over all tokens are 0, so those over the others are

    Σ_¬f z = -a_f,         Σ_¬f z z^T = I - A_f,         Σ_¬f u = -t_f,         Σ_¬f z u^T = B - B_f

Their means, and their scatter and cross-scatter about the means, are

    α_f = -a_f / m_f
    τ_f = -t_f / m_f
    T_f = Σ_¬f (z - α_f)(z - α_f)^T = I - A_f - m_f α_f α_f^T = I - A_f - a_f a_f^T / m_f
    C_f = Σ_¬f (z - α_f)(u - τ_f)^T = B - B_f - m_f α_f τ_f^T = B - B_f - a_f t_f^T / m_f

4. The fit without fold f, with M_f = T_f + Λ:

    W_f = M_f^-1 C_f,      prediction of u:  τ_f + W_f^T (z - α_f)

T_f is well conditioned whatever the condition of x: its eigenvalues lie between 0 and 1, near m_f / n unless fold f is
unlike the others. If the other folds do not vary in some direction, M_f^-1 is a generalised inverse (see _inverse).

5. Moments of fold f about the means of the others. With c_f = 2 / m_f + n_f / m_f^2,

    TSS_f = Σ_f |u - τ_f|^2  = q_f - 2 τ_f · t_f + n_f |τ_f|^2                  = q_f + c_f |t_f|^2
    Σ_f (z - α_f)(u - τ_f)^T = B_f - α_f t_f^T - a_f τ_f^T + n_f α_f τ_f^T      = B_f + c_f a_f t_f^T
    Σ_f (z - α_f)(z - α_f)^T = A_f - α_f a_f^T - a_f α_f^T + n_f α_f α_f^T      = A_f + c_f a_f a_f^T

6. Squared error on fold f of the fit without it.

    RSS_f = Σ_f |u - τ_f - W_f^T (z - α_f)|^2
          = TSS_f - 2 <W_f, B_f + c_f a_f t_f^T> + <W_f, (A_f + c_f a_f a_f^T) W_f>
          = TSS_f - 2 (<W_f, B_f> + c_f (W_f^T a_f) · t_f) + <W_f, A_f W_f> + c_f |W_f^T a_f|^2

7. The quadratic form without a product with A_f. From 3 and 4,

    A_f = I + Λ - M_f - a_f a_f^T / m_f
    <W_f, M_f W_f> = <W_f, C_f>                 also for the generalised inverse: M^-1 M M^-1 = M^-1
    <W_f, A_f W_f> = <W_f, (I + Λ) W_f> - <W_f, C_f> - |W_f^T a_f|^2 / m_f
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastprobe.regression.moments import Moments
from fastprobe.regression.whitening import Whitening


@dataclass(frozen=True)
class HeldOut:
    """Fits of one target without each fold, and their squared errors on it. F is 0 without cross-validation."""

    coef: Tensor  # W_f, (F, r, k), from whitened coordinates
    y_mean_shift: Tensor  # τ_f, (F, k): mean of y over the other folds, less the mean over all
    rss: Tensor  # RSS_f, (F,)
    tss: Tensor  # TSS_f, (F,), about the mean of the other folds

    @classmethod
    def none(cls, B: Tensor) -> HeldOut:
        """Return the fits of no fold, for a target with the (r, k) cross-scatter B."""
        return cls(B.new_zeros(0, *B.shape), B[:0], B.new_zeros(0), B.new_zeros(0))


@dataclass(frozen=True)
class Folds:
    """Sums and inverses of one source fold by fold, shared by the held-out fits of all its targets."""

    whitening: Whitening
    numbers: list[int]  # of the F folds that hold tokens
    n: Tensor  # n_f, (F,)
    m: Tensor  # m_f, (F,)
    a: Tensor  # a_f, (F, r)
    scatter: Tensor  # T_f, (F, r, r)
    inverse: Tensor  # M_f^-1, (F, r, r)
    noise: float  # rounding error of the eigenvalues of T_f, capped at 0.1

    @classmethod
    def of(cls, moments: Moments, x: str, whitening: Whitening) -> Folds | None:
        """Prepare the held-out fits from the source x; ``None`` if fewer than two folds hold tokens."""
        counts = moments.counts
        numbers = [f for f in range(len(counts)) if counts[f] > 0]
        if len(numbers) < 2:
            return None
        P, x_mean = whitening.matrix, whitening.spectrum.mean
        n, sums, grams = counts[numbers], moments.sum(x)[numbers], moments.cross(x, x)[numbers]
        m = counts.sum() - n
        identity = torch.eye(whitening.rank, dtype=torch.float64, device=grams.device)
        centred = torch.stack(list(centred_products(grams, sums, sums, n, x_mean, x_mean)))
        a = (sums - n[:, None] * x_mean) @ P
        T = identity - P.mT @ centred @ P - a[:, :, None] * a[:, None] / m[:, None, None]
        # Whitening divides the rounding errors of a direction by its eigenvalue.
        noise = min(0.1, whitening.noise / (float(whitening.eigenvalues[0]) if whitening.rank else 1.0))
        return cls(whitening, numbers, n, m, a, T, _inverse(T, whitening, noise), noise)

    @property
    def z_mean(self) -> Tensor:
        """α_f, (F, r): mean of the whitened coordinates over the other folds."""
        return -self.a / self.m[:, None]

    def with_ridge(self, whitening: Whitening) -> Folds:
        """Return the same folds with another ridge in the same coordinates."""
        return replace(self, whitening=whitening, inverse=_inverse(self.scatter, whitening, self.noise))

    def fit(self, B_f: Tensor, B: Tensor, sums: Tensor, squares: Tensor, y_mean: Tensor) -> HeldOut:
        """Fit one target without each fold, and score each fit on its fold.

        Args:
            B_f: ``(folds, r, k)`` cross-scatter, also of folds without tokens. With one matrix for all folds,
                ``(1, r, k)``, no fit is made.
            B: ``(r, k)``, the sum of ``B_f``.
            sums: ``(folds, k)`` of y about its origin.
            squares: ``(folds, k)`` of y about its origin.
            y_mean: ``(k,)`` about the origin.
        """
        if len(B_f) == 1:
            return HeldOut.none(B)
        if len(self.numbers) < len(B_f):
            B_f, sums, squares = B_f[self.numbers], sums[self.numbers], squares[self.numbers]
        n, m, a, ridge = self.n[:, None], self.m[:, None], self.a, self.whitening.ridge
        t = sums - n * y_mean  # step 2
        q = squares - 2 * sums * y_mean + n * y_mean.square()
        W, WB, WC = torch.empty_like(B_f), torch.empty_like(self.m), torch.empty_like(self.m)
        for f, inverse in enumerate(self.inverse):
            C = (B - B_f[f]).addr_(a[f], t[f] / m[f], alpha=-1)  # step 3
            torch.mm(inverse, C, out=W[f])  # step 4
            WB[f], WC[f] = W[f].flatten() @ B_f[f].flatten(), W[f].flatten() @ C.flatten()
        Wa = (a[:, None] @ W)[:, 0]
        c = 2 / m + n / m.square()
        tss = (q + c * t.square()).sum(1)  # step 5
        cross = WB + (Wa * c * t).sum(1)
        quadratic = torch.linalg.vector_norm(W, dim=2).square() @ (1 + ridge) - WC
        quadratic += ((c - 1 / m) * Wa.square()).sum(1)  # step 7
        return HeldOut(W, -t / m, tss - 2 * cross + quadratic, tss)  # step 6


def _inverse(T: Tensor, whitening: Whitening, noise: float) -> Tensor:
    """Invert M_f = T_f + Λ for every fold, (F, r, r).

    An eigenvalue of T_f near ``noise`` means that the other folds do not vary in its direction: they have fewer tokens
    than columns, or a column varies in fold f only. They then fit many maps equally well. The generalised inverse gives
    the shortest of them, for columns of x that are scaled to length 1:

        M^-1 = H (H M H)^+ H,    H = diag(L_r)^1/2 without a ridge, H = I with one

    ^+ is the pseudoinverse. L_r are the eigenvalues that whitening keeps, of the scatter of these scaled columns
    (:mod:`~fastprobe.regression.whitening`).
    """
    M = T + whitening.ridge.diag()
    factors, failed = torch.linalg.cholesky_ex(M)
    if not failed.any() and (factors.diagonal(dim1=1, dim2=2).square() > 10 * noise).all():
        return torch.cholesky_inverse(factors)
    h = torch.ones_like(whitening.ridge) if whitening.alpha else whitening.eigenvalues.sqrt()  # diagonal of H
    values, vectors = torch.linalg.eigh(h[:, None] * M * h)
    kept = values > torch.maximum(whitening.rcond * values[:, -1:], noise * values.new_tensor(float(h[0] ** 2)))
    inverse = torch.where(kept, 1 / values, torch.zeros_like(values))
    return h[:, None] * (vectors * inverse[:, None] @ vectors.mT) * h


def centred_products(
    products: Tensor, x_sums: Tensor, y_sums: Tensor, n: Tensor, x_mean: Tensor, y_mean: Tensor
) -> Iterator[Tensor]:
    """Yield the cross products of each fold about the means of all tokens (step 1).

    One fold at a time: the matrices of all folds at once would need fresh memory in every call.

    Args:
        products: ``(folds, d, k)`` about the origins, or ``(1, d, k)`` for all folds together.
        x_sums: ``(folds, d)`` about the origin.
        y_sums: ``(folds, k)`` about the origin.
        n: ``(folds,)`` tokens.
        x_mean: ``(d,)`` of all tokens about the origin.
        y_mean: ``(k,)`` of all tokens about the origin.
    """
    if len(products) == 1 and len(n) > 1:
        x_sums, y_sums, n = x_sums.sum(0, True), y_sums.sum(0, True), n.sum(0, True)
    for G, s_x, s_y, n_f in zip(products, x_sums, y_sums, n, strict=True):
        left, right = torch.stack([s_x, x_mean], dim=1), torch.stack([y_mean, s_y - n_f * y_mean])
        yield torch.addmm(G, left, right, alpha=-1)
