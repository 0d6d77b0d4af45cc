"""Least squares on moments: one factorisation a source x serves every target, fold and ridge.

With S the scatter of x about its mean, D its diagonal and R = D^-1/2 S D^-1/2 = V L V^T, the columns of
P = D^-1/2 V L^-1/2 over the eigenvalues above ``rcond`` times the largest are whitened coordinates: P^T S P = I. In
them the fit on all tokens is P^T C, and the fit without fold f needs only the inverse of I - A_f, which is well
conditioned whatever x was. Scores follow from the same matrices: the squared error of a linear map is a quadratic form.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastprobe.errors import InputError
from fastprobe.ops.score import ResidualSums
from fastprobe.regression.moments import Moments
from fastprobe.regression.spectrum import ACCUMULATION_ERROR, Spectrum, spectra, varying

PREDICTION_ERROR = {"float64": 2**-50, "float32": 2**-21, "float16": 2**-21, "bfloat16": 2**-21}
"""Largest error of a prediction over the size of its terms, by the dtype of the rows: two products in a row."""

RCOND = {"float64": 1e-12, "float32": 1e-7, "float16": 1e-7, "bfloat16": 1e-7}
"""Default of ``rcond`` by the dtype of the rows: above the noise of the sums, far below what trained models show."""


@dataclass(frozen=True)
class LeastSquares:
    """How a map is fitted: ``min |Y - X W - b|^2 + alpha |W|^2``, as scikit-learn's ``Ridge`` has it.

    Directions of x whose eigenvalue in the equilibrated, centred Gram is below ``rcond`` times the largest are left out
    (the states after a LayerNorm always have one). ``None`` is 1e-7, or 1e-12 for float64 rows.
    """

    alpha: float = 0.0
    rcond: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise InputError(f"alpha: must be 0 or more and finite, got {self.alpha}")
        if self.rcond is not None and not 0 <= self.rcond < 1:
            raise InputError(f"rcond: must be at least 0 and below 1, got {self.rcond}")


@dataclass(frozen=True)
class Fit:
    """The affine map of one pair x -> y and what it leaves unexplained, in sums over tokens."""

    coef: Tensor  # (d, k)
    intercept: Tensor  # (k,)
    cross: Tensor  # (d, k): sum of x y^T about their means
    whitened: Tensor  # (r, k): the same map from whitened coordinates
    fold_whitened: Tensor  # (F, r, k): fitted without fold f; empty without folds
    fold_mean_shift: Tensor  # (F, k): mean of y without fold f, less the mean of y
    rss: Tensor  # (k,)
    tss: Tensor  # (k,) about the mean
    y_mean: Tensor  # (k,)
    fold_rss: Tensor  # (F,) of each fold by the fit on the others
    fold_tss: Tensor  # (F,) about the mean of the others
    error_bound: float  # of r2 = 1 - sum(rss) / sum(tss)
    refined: bool = False  # rss is of residuals themselves


@dataclass(frozen=True)
class Solution:
    """A fitted affine map: call it on rows, or take it along as an ``nn.Linear``."""

    coef: Tensor  # (x_dim, y_dim) float64
    intercept: Tensor  # (y_dim,) float64
    rank: int
    condition: float
    alpha: float
    error_bound: float

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.coef.to(x) + self.intercept.to(x)

    def to_linear(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """The map as a torch module."""
        x_dim, y_dim = self.coef.shape
        linear = nn.Linear(x_dim, y_dim, dtype=dtype)
        linear.weight.data.copy_(self.coef.mT)
        linear.bias.data.copy_(self.intercept)
        return linear


class Factorisation:
    """Everything about one source x that its targets share.

    Args:
        moments: sums of a plan that covers the source and its targets.
        x: the source block.
        method: how maps are fitted.
        spectrum: of this source, where it is at hand.

    Raises:
        NumericalError: the moments are of fewer than two tokens.
    """

    def __init__(self, moments: Moments, x: str, method: LeastSquares, spectrum: Spectrum | None = None):
        spectrum = spectrum or Spectrum.of(moments, x)
        counts = moments.counts
        self.moments, self.x, self.method, self.n = moments, x, method, counts.sum()
        self.gamma = ACCUMULATION_ERROR[moments.dtype]
        self.rcond = RCOND[moments.dtype] if method.rcond is None else method.rcond
        self.mean = spectrum.mean  # about the origin, as everything here
        self.scatter, self.norms, scale = spectrum.scatter, spectrum.norms, spectrum.scale
        eigenvalues, vectors = spectrum.eigenvalues, spectrum.vectors
        keep = (eigenvalues > self.rcond * eigenvalues[-1]) & (eigenvalues > 0)
        self.eigenvalues, self.keep = eigenvalues, keep
        self.rank = int(keep.sum())
        self.noise = 0.2 * self.gamma * len(scale) ** 0.5  # of eigenvalues: few entries have the largest error
        kept = eigenvalues[keep]
        self.condition = float(kept[-1] / kept[0]) if self.rank else 1.0
        self.whiten = vectors[:, keep] / kept.sqrt() / scale[:, None]
        self.ridge = torch.zeros_like(kept)
        if method.alpha and self.rank:
            # A map may have any part along directions that x has not, and the shortest has none: it costs nothing.
            null, _ = torch.linalg.qr(vectors[:, ~keep] / scale[:, None])
            paid = self.whiten - null @ (null.mT @ self.whiten)
            penalty, rotation = torch.linalg.eigh(paid.mT @ paid)
            self.whiten = self.whiten @ rotation
            self.ridge = method.alpha * penalty

        self.folds = [f for f in range(len(counts)) if counts[f] > 0] if (counts > 0).sum() > 1 else []
        if self.folds:
            sums, grams = moments.sum(x), moments.cross(x, x)
            self._factorise_folds(counts[self.folds], sums[self.folds], grams[self.folds])

    @classmethod
    def each(cls, moments: Moments, sources: Iterable[str], method: LeastSquares) -> Iterator[Factorisation]:
        """One of every source, with the decompositions of several made together where that is faster; in any order."""
        for x, spectrum in spectra(moments, sources):
            yield cls(moments, x, method, spectrum)

    def _factorise_folds(self, counts: Tensor, sums: Tensor, grams: Tensor) -> None:
        identity = torch.eye(self.rank, dtype=torch.float64, device=grams.device)
        rest = self.n - counts
        centred = torch.stack(list(_centre(grams, sums, sums, counts, self.mean, self.mean)))
        self.fold_sums = (sums - counts[:, None] * self.mean) @ self.whiten
        outer = self.fold_sums[:, :, None] * self.fold_sums[:, None] / rest[:, None, None]
        # Scatter of the tokens outside fold f about their own mean, whitened: the identity less a part of itself.
        self._train = identity - self.whiten.mT @ centred @ self.whiten - outer
        self.fold_counts, self.fold_rest = counts, rest
        self.fold_mean_shift = -self.fold_sums / rest[:, None]  # whitened mean of x without fold f
        # A direction that fold f alone holds has its share of the noise left, magnified by the whitening.
        noise = self.noise / (float(self.eigenvalues[self.keep][0]) if self.rank else 1.0)
        self._floor = min(0.1, noise)
        self.fold_inverse = self._inverse(self._train + self.ridge.diag())

    def with_alpha(self, alpha: float) -> Factorisation:
        """The same source with another ridge, both above 0; nothing is factorised again but the folds' inverses."""
        assert alpha > 0 < self.method.alpha
        other = copy.copy(self)
        other.method = replace(self.method, alpha=alpha)
        other.ridge = self.ridge * (alpha / self.method.alpha)
        if self.folds:
            other.fold_inverse = other._inverse(self._train + other.ridge.diag())
        return other

    def _inverse(self, matrices: Tensor) -> Tensor:
        """Inverses of the folds' (F, r, r) scatters, whitened, whose eigenvalues are at most 1.

        Where one has an eigenvalue near ``_floor``, the other folds leave a direction open: there are fewer tokens than
        columns, or a column varies in one fold only. The shortest map in equilibrated columns is taken then.
        """
        factors, failed = torch.linalg.cholesky_ex(matrices)
        if not failed.any() and (factors.diagonal(dim1=1, dim2=2).square() > 10 * self._floor).all():
            return torch.cholesky_inverse(factors)
        length = torch.ones_like(self.ridge) if self.method.alpha else self.eigenvalues[self.keep].sqrt()
        values, vectors = torch.linalg.eigh(length[:, None] * matrices * length)
        kept = values > torch.maximum(
            self.rcond * values[:, -1:], self._floor * values.new_tensor(float(length[0] ** 2))
        )
        inverse = torch.where(kept, 1 / values, torch.zeros_like(values))
        return length[:, None] * (vectors * inverse[:, None] @ vectors.mT) * length

    def fit(self, y: str) -> Fit:
        """The map from this source to the block ``y``."""
        moments, n, whiten = self.moments, self.n, self.whiten
        counts = moments.counts
        cross, sums, squares = moments.cross(self.x, y), moments.sum(y), moments.square(y)
        y_mean = sums.sum(0) / n
        tss = squares.sum(0) - n * y_mean.square()
        origin_x, origin_y = moments.origin(self.x), moments.origin(y)
        varies = varying(tss, squares.sum(0), n * (origin_y + y_mean).square(), self.gamma)
        tss = tss * varies
        fold_b = whiten.new_empty(len(cross), self.rank, cross.shape[2])
        total = torch.zeros_like(cross[0])
        # Fold by fold: matrices of all folds at once would be fresh memory every time.
        by_fold = _centre(cross, moments.sum(self.x), sums, counts, self.mean, y_mean)
        for centred, out in zip(by_fold, fold_b, strict=True):
            total += centred
            torch.mm(whiten.mT, centred, out=out)
        b = fold_b.sum(0)
        whitened = b / (1 + self.ridge)[:, None]
        rss = self._rss(b, whitened, tss) * varies
        coef = whiten @ whitened
        fold_whitened, shift, fold_rss, fold_tss = self._fit_folds(fold_b, b, sums, squares, y_mean)
        return Fit(
            coef=coef,
            intercept=origin_y + y_mean - (origin_x + self.mean) @ coef,
            cross=total,
            whitened=whitened,
            fold_whitened=fold_whitened,
            fold_mean_shift=shift,
            rss=rss,
            tss=tss,
            y_mean=origin_y + y_mean,
            fold_rss=fold_rss,
            fold_tss=fold_tss,
            error_bound=self._error_bound(coef, squares.sum(0), rss, tss),
        )

    def solution(self, fit: Fit) -> Solution:
        """The fitted map of all tokens."""
        return Solution(fit.coef, fit.intercept, self.rank, self.condition, self.method.alpha, fit.error_bound)

    def fold_map(self, fit: Fit, place: int) -> tuple[Tensor, Tensor]:
        """The map fitted without the fold at a place of :attr:`folds`: (r, k) from whitened x, and (k,) to be added."""
        w = fit.fold_whitened[place]
        return w, fit.y_mean + fit.fold_mean_shift[place] - self.fold_mean_shift[place] @ w

    def refined(
        self, fit: Fit, y: str, left: ResidualSums, fold_left: Sequence[tuple[ResidualSums, ResidualSums]]
    ) -> Fit:
        """The fit after one step of iterative refinement.

        Args:
            fit: of this source to ``y``.
            y: name of the target block.
            left: what the map of ``fit`` leaves on all rows, with whitened x for x.
            fold_left: the same of the map without each fold: on the others, and on the fold.
        """
        step = (left.cross - self.ridge[:, None] * fit.whitened) / (1 + self.ridge)[:, None]
        gain = (step * (2 * left.cross - step)).sum(0) + left.sums.square() / self.n
        rss = torch.where(fit.tss > 0, left.squares - gain, torch.zeros_like(gain)).clamp(min=0)
        whitened = fit.whitened + step
        coef, y_mean = self.whiten @ whitened, fit.y_mean + left.sums / self.n
        return replace(
            fit,
            coef=coef,
            intercept=y_mean - (self.moments.origin(self.x) + self.mean) @ coef,
            whitened=whitened,
            y_mean=y_mean,
            rss=rss,
            refined=True,
            fold_rss=self._refined_folds(fit, fold_left),
            error_bound=self._refined_error_bound(coef, self.moments.square(y).sum(0), rss, fit.tss, gain),
        )

    def _refined_folds(self, fit: Fit, fold_left: Sequence[tuple[ResidualSums, ResidualSums]]) -> Tensor:
        """(F,) what the maps without fold f leave on it after a step of their own."""
        rss = fit.fold_rss.clone()
        for f, (train, held) in enumerate(fold_left):
            a, n, rest = self.fold_sums[f], self.fold_counts[f], self.fold_rest[f]
            # About the means of the other folds' tokens, where the sum of z is -a.
            wanted = train.cross + torch.outer(a, train.sums) / rest - self.ridge[:, None] * fit.fold_whitened[f]
            step = self.fold_inverse[f] @ wanted
            shift = (train.sums + a @ step) / rest
            # The scatter of z in the fold is I less what fold_inverse inverts, a ridge and a a^T / rest: no product.
            aw = a @ step
            scatter = step.square().sum() + (self.ridge @ step.square()).sum() - (step * wanted).sum()
            scatter -= aw.square().sum() / rest
            gain = 2 * (step * held.cross).sum() + 2 * shift @ held.sums
            rss[f] = held.squares.sum() - gain + scatter + 2 * shift @ aw + n * shift.square().sum()
        return rss

    def residual_scores(self, fit: Fit) -> tuple[Tensor, Tensor]:
        """Unexplained and total sums of squares, each (k,), of the target y - x; x and y have one width."""
        tss = fit.tss - 2 * fit.cross.diagonal() + self.scatter.diagonal()
        varies = tss > self.gamma * (fit.tss + self.scatter.diagonal())  # else a difference of equals
        tss = tss * varies
        if fit.refined and not self.method.alpha:  # y - x leaves what y leaves
            return fit.rss * varies, tss
        b = self.whiten.mT @ ((fit.cross - self.scatter) * varies)
        return self._rss(b, b / (1 + self.ridge)[:, None], tss), tss

    @staticmethod
    def _rss(b: Tensor, whitened: Tensor, tss: Tensor) -> Tensor:
        return (tss - 2 * (whitened * b).sum(0) + whitened.square().sum(0)).clamp(min=0)

    def _fit_folds(
        self, fold_b: Tensor, b: Tensor, sums: Tensor, squares: Tensor, y_mean: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if not self.folds or len(fold_b) == 1:
            return fold_b[:0], b[:0], b.new_zeros(0), b.new_zeros(0)
        n, rest, a = self.fold_counts[:, None], self.fold_rest[:, None], self.fold_sums
        if len(self.folds) < len(fold_b):
            fold_b, sums, squares = fold_b[self.folds], sums[self.folds], squares[self.folds]
        t = sums - n * y_mean  # sums of y about its mean
        w, by_b, by_train = torch.empty_like(fold_b), torch.empty_like(self.fold_rest), torch.empty_like(self.fold_rest)
        for f, own in enumerate(fold_b):
            train = (b - own).addr_(a[f], t[f] / rest[f], alpha=-1)
            torch.mm(self.fold_inverse[f], train, out=w[f])
            by_b[f], by_train[f] = w[f].flatten() @ own.flatten(), w[f].flatten() @ train.flatten()
        # The held-out fold about the training mean, which is the mean of all less t / rest.
        moved = 2 / rest + n / rest.square()
        q = squares - 2 * sums * y_mean + n * y_mean.square()
        tss = (q + moved * t.square()).sum(1)
        aw = (a[:, None] @ w)[:, 0]
        cross = by_b + (aw * moved * t).sum(1)
        # w^T A_f w with A_f = I + ridge - (matrix that fold_inverse inverts) - a a^T / rest, so no product with A_f.
        quadratic = torch.linalg.vector_norm(w, dim=2).square() @ (1 + self.ridge) - by_train
        quadratic += ((moved - 1 / rest) * aw.square()).sum(1)
        return w, -t / rest, tss - 2 * cross + quadratic, tss

    def _error_bound(self, coef: Tensor, squares: Tensor, rss: Tensor, tss: Tensor) -> float:
        """Bound on the error of r2: first order in the error of the sums, plus what left-out directions could hold.

        |dRSS_k| <= gamma (|y_k| + sum_i |W_ik| |x_i|)^2. Directions are left out for good reason where all of them are
        within the noise of the sums and the smallest one kept is far above it. Where the spectrum runs down into the
        noise instead, nothing is known of the unexplained part.
        """
        total = float(tss.sum())
        if total <= 0:
            return 0.0
        sums = ACCUMULATION_ERROR[self.moments.precision]
        return max(sums * self._reach(coef, squares) / total, self._unknown(rss, total))

    def _refined_error_bound(self, coef: Tensor, squares: Tensor, rss: Tensor, tss: Tensor, gain: Tensor) -> float:
        """The same after a step: what the step gained, as the next one would gain less, and the rounding of residuals.

        A prediction is off by at most ``PREDICTION_ERROR`` times the size of its terms, so a residual of length r by
        e and its square by 2 r e + e^2.
        """
        total = float(tss.sum())
        if total <= 0:
            return 0.0
        left, rounding = float(rss.sum()) / total, PREDICTION_ERROR[self.moments.precision] ** 2
        rounding *= self._reach(coef, squares) / total
        bound = float(gain.clamp(min=0).sum()) / total + 2 * (left * rounding) ** 0.5 + rounding
        bound += ACCUMULATION_ERROR[self.moments.precision] * left * float(squares.sum()) / total  # of the total
        return max(bound, self._unknown(rss, total))

    def _reach(self, coef: Tensor, squares: Tensor) -> float:
        """The size of the terms of all residuals: sum_k (|y_k| + sum_i |W_ik| |x_i|)^2."""
        return float((squares.sqrt() + coef.abs().mT @ self.norms).square().sum())

    def _unknown(self, rss: Tensor, total: float) -> float:
        """The share of y that directions left out could hold; 0 where they are left out for good reason."""
        dropped = self.eigenvalues[~self.keep & (self.eigenvalues != 0)]
        if self.method.alpha or not len(dropped) or not self.rank:
            return 0.0
        is_null = float(dropped.abs().max()) <= self.noise and float(self.eigenvalues[self.keep][0]) >= 100 * self.noise
        return 0.0 if is_null else float(rss.sum()) / total


def _centre(
    cross: Tensor, x_sums: Tensor, y_sums: Tensor, counts: Tensor, x_mean: Tensor, y_mean: Tensor
) -> Iterator[Tensor]:
    """Cross products of each fold about the means of all tokens, from those about the origins."""
    if len(cross) == 1 and len(counts) > 1:
        x_sums, y_sums, counts = x_sums.sum(0, True), y_sums.sum(0, True), counts.sum(0, True)
    for product, x_sum, y_sum, n in zip(cross, x_sums, y_sums, counts, strict=True):
        left, right = torch.stack([x_sum, x_mean], dim=1), torch.stack([y_mean, y_sum - n * y_mean])
        yield torch.addmm(product, left, right, alpha=-1)
