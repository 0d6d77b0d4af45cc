"""Cross-validation from moments: the fit without fold f, and its squared error on fold f, from sums alone.

Symbols. Fold f has n_f tokens, the other folds have m_f = n - n_f. z = P^T (x - x̄) are whitened coordinates of x,
Λ is the ridge in them (:mod:`~fastprobe.regression.whitening`), u = y - ȳ. Means are over all tokens. Σ_f sums over the
tokens of fold f, Σ_¬f over the other tokens, Σ over all tokens: Σ z = 0, Σ z z^T = I, Σ u = 0. <A, B> = Σ_ij A_ij B_ij.

1. Centring. Moments are about an origin. With s = Σ_f x and G = Σ_f x y^T about the origins,

    Σ_f (x - x̄)(y - ȳ)^T = G - s_x ȳ^T - x̄ (s_y - n_f ȳ)^T

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
unlike the others. If the other folds do not vary in some direction, M_f^-1 is a generalised inverse (Folds.with_ridge).

5. The same from two triangular solves. With P = Π_D^T K^-T (:mod:`~fastprobe.regression.whitening`), and over the
other tokens S_f = Σ_¬f (x - x̄_f)(x - x̄_f)^T and Y_f = Σ_¬f (x - x̄_f)(y - ȳ_f)^T about their own means,

    Π_D S_f Π_D^T + L_max D^1/2 N N^T D^1/2 = K_f K_f^T         Cholesky factor, (d, d)
    M_f = K^-1 K_f K_f^T K^-T = J_f J_f^T,     J_f = K^-1 K_f    triangular as well
    C_f = P^T Y_f
    X_f = J_f^-1 C_f = K_f^-1 Π_D Y_f                            no product with P
    W_f = J_f^-T X_f
    <W_f, C_f> = |X_f|^2

6. Moments of fold f about the means of the others. With c_f = 2 / m_f + n_f / m_f^2,

    TSS_f = Σ_f |u - τ_f|^2  = q_f - 2 τ_f · t_f + n_f |τ_f|^2                  = q_f + c_f |t_f|^2
    Σ_f (z - α_f)(u - τ_f)^T = B_f - α_f t_f^T - a_f τ_f^T + n_f α_f τ_f^T      = B_f + c_f a_f t_f^T
    Σ_f (z - α_f)(z - α_f)^T = A_f - α_f a_f^T - a_f α_f^T + n_f α_f α_f^T      = A_f + c_f a_f a_f^T

7. Squared error on fold f of the fit without it.

    RSS_f = Σ_f |u - τ_f - W_f^T (z - α_f)|^2
          = TSS_f - 2 <W_f, B_f + c_f a_f t_f^T> + <W_f, (A_f + c_f a_f a_f^T) W_f>
          = TSS_f - 2 (<W_f, B_f> + c_f (W_f^T a_f) · t_f) + <W_f, A_f W_f> + c_f |W_f^T a_f|^2

8. Both products without A_f and B_f. From 3 and 4,

    B_f = B - C_f - a_f t_f^T / m_f
    A_f = I + Λ - M_f - a_f a_f^T / m_f
    <W_f, M_f W_f> = <W_f, C_f> = |X_f|^2       also for the generalised inverse: M^-1 M M^-1 = M^-1
    <W_f, B_f> = <W_f, B> - |X_f|^2 - (W_f^T a_f) · t_f / m_f
    <W_f, A_f W_f> = <W_f, (I + Λ) W_f> - |X_f|^2 - |W_f^T a_f|^2 / m_f
"""

from __future__ import annotations

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
    """Sums and factors of one source fold by fold, shared by the held-out fits of all its targets."""

    whitening: Whitening
    numbers: list[int]  # of the F folds that hold tokens
    n: Tensor  # n_f, (F,)
    m: Tensor  # m_f, (F,)
    sums: Tensor  # s_x, (F, d), about the origin
    a: Tensor  # a_f, (F, c)
    scatter: Tensor | None  # T_f, (F, c, c), if P is not triangular
    outer: Tensor | None  # K_f, (F, d, d), if P is triangular
    inner: Tensor | None  # J_f, (F, c, c)
    roots: Tensor | None  # H_f, (F, c, c), in place of K_f and J_f if a fold needs a generalised inverse H_f H_f^T

    @classmethod
    def of(cls, moments: Moments, x: str, whitening: Whitening) -> Folds | None:
        """Prepare the held-out fits from the source x; ``None`` if fewer than two folds hold tokens."""
        counts = moments.counts
        numbers = [f for f in range(len(counts)) if counts[f] > 0]
        if len(numbers) < 2:
            return None
        mean, S = whitening.source.mean, whitening.source.scatter
        n, sums, grams = counts[numbers], moments.sum(x)[numbers], moments.cross(x, x)
        m = counts.sum() - n
        a = sums - n[:, None] * mean
        folds = cls(whitening, numbers, n, m, sums, a @ whitening.matrix, None, None, None, None)
        others = S.new_empty(len(numbers), *S.shape)
        for place, f in enumerate(numbers):
            of_others(S, grams[f], sums[place], mean, a[place], mean, n[place], m[place], out=others[place])
        if whitening.factor is not None:
            return folds._with_triangles(others)
        P = whitening.matrix
        T = torch.eye(P.shape[1], dtype=P.dtype, device=P.device) - P.mT @ (S - others) @ P
        return replace(folds, scatter=T).with_ridge(whitening)

    @property
    def z_mean(self) -> Tensor:
        """α_f, (F, c): mean of the whitened coordinates over the other folds."""
        return -self.a / self.m[:, None]

    @property
    def noise(self) -> float:
        """Rounding error of the eigenvalues of T_f, capped at 0.1.

        Whitening divides the rounding errors of a direction by its eigenvalue.
        """
        return min(0.1, self.whitening.noise / self.whitening.smallest)

    def with_ridge(self, whitening: Whitening) -> Folds:
        """Return the same folds with another ridge in the same coordinates.

        An eigenvalue of T_f near ``noise`` means that the other folds do not vary in its direction: they have fewer
        tokens than columns, or a column varies in fold f only. They then fit many maps equally well. The generalised
        inverse gives the shortest of them, for columns of x that are scaled to length 1:

            M^-1 = H (H M H)^+ H,    H = diag(L_r)^1/2 without a ridge, H = I with one

        ^+ is the pseudoinverse. L_r are the eigenvalues that whitening keeps, of the scatter of these scaled columns
        (:mod:`~fastprobe.regression.whitening`).
        """
        assert self.scatter is not None
        M = self.scatter + whitening.ridge.diag()
        J, failed = torch.linalg.cholesky_ex(M)
        folds = replace(self, whitening=whitening)
        if not failed.any() and folds._well_conditioned(J):
            return replace(folds, inner=J, roots=None)
        L_r = whitening.eigenvalues
        h = torch.ones_like(whitening.ridge) if L_r is None else L_r.sqrt()  # diagonal of H
        least = 1.0 if L_r is None else whitening.smallest
        return replace(folds, inner=None, roots=h[:, None] * folds._pseudo_roots(h[:, None] * M * h, least))

    def _with_triangles(self, others: Tensor) -> Folds:
        """Factorise S_f of every fold where P is triangular; the scatters may be overwritten.

        The generalised inverse of M_f is that of :meth:`with_ridge` in these coordinates, with G^T in place of H:

            M^-1 = G^T R_f^+ G,    R_f = D^-1/2 Π_D S_f Π_D^T D^-1/2 = G M G^T without the part along N
        """
        whitening, K = self.whitening, self.whitening.factor
        assert K is not None
        scale, varies = whitening.source.scale, whitening.source.varies
        for S_f in others:
            whitening.projected(whitening.projected(S_f).mT)
        N = scale[:, None] * whitening.null * whitening.largest**0.5
        left_out = N @ N.mT + (~varies * whitening.largest).diag() if whitening.rank < len(K) else None
        if left_out is not None:
            others += left_out
        outer, failed = torch.linalg.cholesky_ex(others)
        if not failed.any():
            inner = torch.linalg.solve_triangular(K, outer, upper=False)
            if self._well_conditioned(inner):
                return replace(self, outer=outer, inner=inner)
        R_f = (others if left_out is None else others - left_out) / scale[:, None] / scale
        return replace(self, roots=(K / scale[:, None]).mT @ self._pseudo_roots((R_f + R_f.mT) / 2, whitening.smallest))

    def _well_conditioned(self, J: Tensor) -> bool:
        """Return True if M_f = J_f J_f^T has no eigenvalue near ``noise`` for any fold."""
        return bool((J.diagonal(dim1=1, dim2=2).square() > 10 * self.noise).all())

    def _pseudo_roots(self, R: Tensor, least: float) -> Tensor:
        """Return roots of the pseudoinverses of symmetric R, (F, c, c): R^+ = root root^T.

        Args:
            R: ``(F, c, c)``.
            least: the smallest eigenvalue of R that can be more than noise, if the folds were alike.
        """
        values, vectors = torch.linalg.eigh(R)
        kept = values > torch.maximum(self.whitening.rcond * values[:, -1:], values.new_tensor(self.noise * least))
        return vectors * torch.where(kept, values.clamp(min=torch.finfo(values.dtype).tiny).rsqrt(), 0.0)[:, None]

    def solve(self, f: int, C: Tensor) -> Tensor:
        """Return M_f^-1 C, (c, k), for C in whitened coordinates and the f-th of the folds that hold tokens."""
        return self._upper(f, self._lower(f, C))

    def _lower(self, f: int, C: Tensor) -> Tensor:
        """Return J_f^-1 C, or H_f^T C."""
        if self.inner is None:
            assert self.roots is not None
            return self.roots[f].mT @ C
        return torch.linalg.solve_triangular(self.inner[f], C, upper=False)

    def _upper(self, f: int, X: Tensor) -> Tensor:
        """Return J_f^-T X in the memory of X, or H_f X."""
        if self.inner is None:
            assert self.roots is not None
            return self.roots[f] @ X
        return torch.linalg.solve_triangular(self.inner[f].mT, X, upper=True, out=X)

    def fit(self, cross: Tensor, S_xy: Tensor, B: Tensor, sums: Tensor, squares: Tensor, y_mean: Tensor) -> HeldOut:
        """Fit one target without each fold, and score each fit on its fold.

        Args:
            cross: ``(folds, d, k)`` Σ_f x y^T about the origins, also of folds without tokens. With one matrix for all
                folds, ``(1, d, k)``, no fit is made.
            S_xy: ``(d, k)``.
            B: ``(c, k)``, P^T S_xy.
            sums: ``(folds, k)`` of y about its origin.
            squares: ``(folds, k)`` of y about its origin.
            y_mean: ``(k,)`` about the origin.
        """
        if len(cross) == 1:
            return HeldOut.none(B)
        if len(self.numbers) < len(cross):
            cross, sums, squares = cross[self.numbers], sums[self.numbers], squares[self.numbers]
        n, m, a, ridge = self.n[:, None], self.m[:, None], self.a, self.whitening.ridge
        t = sums - n * y_mean  # step 2
        q = squares - 2 * sums * y_mean + n * y_mean.square()
        x_mean = self.whitening.source.mean
        W, Wa = B.new_empty(len(cross), *B.shape), torch.empty_like(t)
        X_squares, WB, W_squares = (torch.empty_like(self.m) for _ in range(3))
        for f, (G, t_f, W_f) in enumerate(zip(cross, t, W, strict=True)):  # step 5
            Y = torch.empty_like(S_xy) if self.outer is None else W_f
            of_others(S_xy, G, self.sums[f], x_mean, t_f, y_mean, self.n[f], self.m[f], out=Y)
            if self.outer is None:
                X = self._lower(f, self.whitening.coordinates(Y))
            else:
                X = torch.linalg.solve_triangular(self.outer[f], self.whitening.projected(Y), upper=False, out=Y)
            X_squares[f] = torch.linalg.vector_norm(X).square()
            X = self._upper(f, X)
            if X is not W_f:
                W_f.copy_(X)
            W_squares[f] = torch.linalg.vector_norm(W_f, dim=1).square() @ (1 + ridge)
            WB[f] = W_f.flatten() @ B.flatten()
            torch.mv(W_f.mT, a[f], out=Wa[f])
        WB -= X_squares + (Wa * t / m).sum(1)  # step 8
        c = 2 / m + n / m.square()
        tss = (q + c * t.square()).sum(1)  # step 6
        cross_term = WB + (Wa * c * t).sum(1)
        quadratic = W_squares - X_squares + ((c - 1 / m) * Wa.square()).sum(1)
        return HeldOut(W, -t / m, tss - 2 * cross_term + quadratic, tss)  # step 7


def of_others(
    S: Tensor, G: Tensor, s_x: Tensor, x_mean: Tensor, t: Tensor, y_mean: Tensor, n: Tensor, m: Tensor, *, out: Tensor
) -> Tensor:
    """Return Y_f = Σ_¬f (x - x̄_f)(y - ȳ_f)^T, (d, k), about the means of the other tokens (steps 1 and 3).

        Y_f = S_xy - [G - s_x ȳ^T - x̄ t_f^T] - (s_x - n_f x̄) t_f^T / m_f

    Args:
        S: ``(d, k)`` S_xy, of all tokens.
        G: ``(d, k)`` Σ_f x y^T about the origins.
        s_x: ``(d,)`` Σ_f x about the origin.
        x_mean: ``(d,)`` x̄ about the origin.
        t: ``(k,)`` t_f.
        y_mean: ``(k,)`` ȳ about the origin.
        n: () tokens of fold f.
        m: () tokens of the other folds.
        out: ``(d, k)``.
    """
    left, right = torch.stack([s_x, x_mean - (s_x - n * x_mean) / m], dim=1), torch.stack([y_mean, t])
    return torch.sub(S, G, out=out).addmm_(left, right)
