"""Least squares on moments: one factorisation of a source x serves every target y.

With z = P^T (x - x̄) the whitened coordinates of x and Λ the ridge in them (:mod:`~fastprobe.regression.whitening`):

    B = P^T S_xy,   S_xy = Σ (x - x̄)(y - ȳ)^T              (c, k)
    W = (I + Λ)^-1 B                                        the map from z
    P W,  ȳ - (P W)^T x̄                                     coefficients and intercept of the map from x
    TSS = Σ |y - ȳ|^2
    RSS = Σ |y - ȳ - W^T z|^2 = TSS - 2 <W, B> + <W, W>     column by column, because Σ z z^T = I
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastprobe.errors import InputError, NumericalError
from fastprobe.orders.arguments import number
from fastprobe.regression.cross_validation import Folds, HeldOut
from fastprobe.regression.deflation import deflations
from fastprobe.regression.error_bounds import r2_error_bound
from fastprobe.regression.moments import Moments
from fastprobe.regression.spectrum import ACCUMULATION_ERROR, Scatter, Spectrum, least_scatter
from fastprobe.regression.whitening import Whitening

RCOND = {"float64": 1e-12, "float32": 1e-7, "float16": 1e-7, "bfloat16": 1e-7}
"""Default of ``rcond`` by the dtype of the rows: above the noise of the sums, far below what trained models show."""

MEMORY = 2**29
"""Bytes of the matrices of sources that a GPU factorises together."""

MATRICES = 8
"""Matrices as large as the scatter that are in memory for each of these sources, without those of the folds."""


@dataclass(frozen=True)
class LeastSquares:
    """Options of a fit: ``min_W,b |Y - X W - b|^2 + alpha |W|^2``, as in scikit-learn's ``Ridge``.

    The fit leaves out directions of x whose eigenvalue in the equilibrated scatter is below ``rcond`` times the
    largest. Hidden states after a LayerNorm always have one. ``rcond=None`` means 1e-7, or 1e-12 for float64 rows.
    """

    alpha: float = 0.0
    rcond: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", number(self.alpha, "alpha"))
        if self.rcond is not None:
            object.__setattr__(self, "rcond", number(self.rcond, "rcond"))
        if not 0 <= self.alpha < math.inf:
            raise InputError(f"alpha: must be 0 or more and finite, got {self.alpha}")
        if self.rcond is not None and not 0 <= self.rcond < 1:
            raise InputError(f"rcond: must be at least 0 and below 1, got {self.rcond}")


@dataclass(frozen=True)
class Fit:
    """Affine map of one pair x -> y, with its sums of squares by output coordinate."""

    coef: Tensor  # P W, (d, k)
    intercept: Tensor  # (k,)
    cross_scatter: Tensor  # S_xy, (d, k)
    whitened_coef: Tensor  # W, (c, k): the same map from whitened coordinates
    y_mean: Tensor  # ȳ, (k,)
    rss: Tensor  # (k,)
    tss: Tensor  # (k,), about the mean; 0 for a constant coordinate
    held_out: HeldOut
    error_bound: float  # of r2 = 1 - sum(rss) / sum(tss)
    refined: bool = False  # rss was summed from the residuals of the rows


@dataclass(frozen=True)
class Solution:
    """Fitted affine map: call it on rows, or turn it into an ``nn.Linear``."""

    coef: Tensor  # (x_dim, y_dim) float64
    intercept: Tensor  # (y_dim,) float64
    rank: int
    condition: float
    alpha: float
    error_bound: float
    factorisation: str = "cholesky"
    """``"eigh"`` if the source has fewer than 128 columns, or more directions to leave out than the other one finds."""

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.coef.to(x) + self.intercept.to(x)

    def to_linear(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """Return the map as a torch module."""
        x_dim, y_dim = self.coef.shape
        linear = nn.Linear(x_dim, y_dim, dtype=dtype)
        linear.weight.data.copy_(self.coef.mT)
        linear.bias.data.copy_(self.intercept)
        return linear


class _Target(NamedTuple):
    """Sums of one target y of a source."""

    cross: Tensor  # Σ_f x y^T about the origins, (folds, d, k)
    sums: Tensor  # (folds, k) about the origin
    squares: Tensor  # (folds, k) about the origin
    y_mean: Tensor  # (k,) about the origin
    tss: Tensor  # (k,), 0 for a constant coordinate
    varies: Tensor  # (k,) bool
    hidden: Tensor  # (k,): scatter that a coordinate which counts as constant may have
    S_xy: Tensor  # (d, k)
    B: Tensor  # P^T S_xy, (c, k)


@dataclass(frozen=True)
class Factorisation:
    """Factorisation of one source x, shared by the fits to all its targets."""

    moments: Moments
    x: str
    method: LeastSquares
    whitening: Whitening
    folds: Folds | None  # None without cross-validation

    @classmethod
    def of(cls, moments: Moments, x: str, method: LeastSquares) -> Factorisation:
        """Factorise one source.

        Args:
            moments: sums of a plan that covers the source and its targets.
            x: name of the source block.
            method: options of the fits.

        Raises:
            NumericalError: the moments hold fewer than two tokens.
        """
        return cls.together(moments, [x], method)[0]

    @classmethod
    def together(cls, moments: Moments, sources: Sequence[str], method: LeastSquares) -> list[Factorisation]:
        """Factorise sources of one width, by batched calls.

        Args:
            moments: sums of a plan that covers the sources and their targets.
            sources: names of blocks.
            method: options of the fits.

        Raises:
            NumericalError: the moments hold fewer than two tokens.
        """
        scatters = [Scatter.of(moments, x) for x in sources]
        rcond = RCOND[moments.dtype] if method.rcond is None else method.rcond
        found = []
        for x, source, deflation in zip(sources, scatters, deflations(scatters, rcond), strict=True):
            whitening = Whitening.of(
                source,
                deflation or Spectrum.of(source),
                alpha=method.alpha,
                rcond=rcond,
                gamma=ACCUMULATION_ERROR[moments.dtype],
            )
            found.append(cls(moments, x, method, whitening, Folds.of(moments, x, whitening)))
        return found

    def with_alpha(self, alpha: float) -> Factorisation:
        """Return the factorisation for a ridge above 0. Of another above 0, only the factors of the folds are new."""
        whitening, folds = self.whitening.with_alpha(alpha), self.folds
        if folds is not None:
            folds = folds.with_ridge(whitening) if self.method.alpha else Folds.of(self.moments, self.x, whitening)
        return replace(self, method=replace(self.method, alpha=alpha), whitening=whitening, folds=folds)

    @property
    def n(self) -> Tensor:
        """Number of tokens, () float64."""
        return self.moments.counts.sum()

    @property
    def x_mean(self) -> Tensor:
        """x̄, (d,)."""
        return self.moments.origin(self.x) + self.whitening.source.mean

    @functools.cached_property
    def whitened_scatter(self) -> Tensor:
        """P^T S_xx, (c, d)."""
        return self.whitening.coordinates(self.whitening.source.scatter.clone())

    def cross_validate(self, y: str) -> HeldOut | None:
        """Return what :meth:`fit` has as ``held_out``, and compute no more; ``None`` if y is constant."""
        target = self._target(y)
        return self._held_out(target) if target.tss.any() else None

    def fit(self, y: str) -> Fit:
        """Fit the map from this source to the block ``y``."""
        moments, n, whitening = self.moments, self.n, self.whitening
        target = self._target(y)
        y_mean, tss, S_xy, B = target.y_mean, target.tss, target.S_xy, target.B
        origin, y_squares = moments.origin(y), target.squares.sum(0)
        W = B / (1 + whitening.ridge)[:, None] if self.method.alpha else B
        rss = _rss(W, B, tss) * target.varies
        if not rss.isfinite().all():
            raise NumericalError(
                f"{self.x}, {y}: products of their values overflow {moments.precision}; scale the rows or use exact"
            )
        coef = whitening.map(W)
        return Fit(
            coef=coef,
            intercept=origin + y_mean - self.x_mean @ coef,
            cross_scatter=S_xy,
            whitened_coef=W,
            y_mean=origin + y_mean,
            rss=rss,
            tss=tss,
            held_out=self._held_out(target),
            error_bound=r2_error_bound(
                whitening, coef, S_xy, y_squares, rss, tss, n=n, hidden=target.hidden, precision=moments.precision
            ),
        )

    def _target(self, y: str) -> _Target:
        """Return the sums of one target."""
        moments, n, whitening = self.moments, self.n, self.whitening
        cross, sums, squares = moments.cross(self.x, y), moments.sum(y), moments.square(y)
        y_mean = sums.sum(0) / n
        tss = squares.sum(0) - n * y_mean.square()
        y_squares = squares.sum(0)
        least = least_scatter(moments, y, y_squares, y_mean)
        varies = tss > least
        hidden = torch.maximum(least, tss) * (~varies & (y_squares > 0))
        S_xy = cross.sum(0).addr_(whitening.source.mean, n * y_mean, alpha=-1)
        B = whitening.coordinates(S_xy.clone())
        return _Target(cross, sums, squares, y_mean, tss * varies, varies, hidden, S_xy, B)

    def _held_out(self, target: _Target) -> HeldOut:
        """Return the fits of one target without each fold."""
        if self.folds is None:
            return HeldOut.none(target.B)
        return self.folds.fit(target.cross, target.S_xy, target.B, target.sums, target.squares, target.y_mean)

    def solution(self, fit: Fit) -> Solution:
        """Return the map fitted on all tokens."""
        rank, condition = self.whitening.rank, self.whitening.condition
        return Solution(
            fit.coef, fit.intercept, rank, condition, self.method.alpha, fit.error_bound, self.whitening.method
        )

    def fold_maps(self, fit: Fit) -> dict[int, tuple[Tensor, Tensor]]:
        """Return, for every fold, the map fitted without it; no map without cross-validation.

        Returns:
            fold -> (W_f ``(c, k)`` from whitened coordinates, intercept ``(k,)``).
        """
        held_out = fit.held_out
        if self.folds is None or not len(held_out.coef):
            return {}
        of_folds = zip(self.folds.numbers, held_out.coef, held_out.y_mean_shift, self.folds.z_mean, strict=True)
        return {f: (W, fit.y_mean + y_shift - z_mean @ W) for f, W, y_shift, z_mean in of_folds}

    def residual_sums(self, fit: Fit) -> tuple[Tensor, Tensor]:
        """Return RSS and TSS, each ``(k,)``, of the target v = y - x. x and y must have the same width.

            TSS = diag(S_vv) = diag(S_yy) - 2 diag(S_xy) + diag(S_xx)
            RSS = that of the fit of v on x, from S_xv = S_xy - S_xx

        TSS is a difference. A coordinate where it is below the rounding errors of its terms counts as constant.
        """
        S_xx, S_xy, ridge = self.whitening.source.scatter, fit.cross_scatter, self.whitening.ridge
        tss = fit.tss - 2 * S_xy.diagonal() + S_xx.diagonal()
        varies = tss > ACCUMULATION_ERROR[self.moments.dtype] * (fit.tss + S_xx.diagonal())
        tss = tss * varies
        if fit.refined and not self.method.alpha:  # without a ridge y - x has the residuals of y
            return fit.rss * varies, tss
        if fit.refined:
            B = self.whitening.coordinates(S_xy.clone())
        else:
            B = fit.whitened_coef * (1 + ridge)[:, None] if self.method.alpha else fit.whitened_coef
        B = (B - self.whitened_scatter) * varies
        return _rss(B / (1 + ridge)[:, None], B, tss), tss


def source_groups(moments: Moments, sources: Iterable[str], memory: int = MEMORY) -> list[list[str]]:
    """Divide sources into groups for :meth:`Factorisation.together`, in ascending order of width.

    A GPU factorises sources of one width by batched calls. A CPU takes them one by one, side by side on its cores.

    Args:
        moments: sums of a plan that covers the sources.
        sources: names of blocks; each is taken once.
        memory: bytes that the matrices of a group may take; a single source may exceed it.
    """
    widths = moments.plan.widths
    groups = []
    for width, alike in groupby(sorted(dict.fromkeys(sources), key=widths.__getitem__), key=widths.__getitem__):
        fitting = max(1, memory // (MATRICES * 8 * width * width))
        while group := list(islice(alike, 1 if moments.counts.device.type == "cpu" else fitting)):
            groups.append(group)
    return groups


def _rss(W: Tensor, B: Tensor, tss: Tensor) -> Tensor:
    """Return RSS = TSS - 2 <W, B> + <W, W>, column by column; rounding errors below 0 become 0."""
    return (tss - 2 * (W * B).sum(0) + W.square().sum(0)).clamp(min=0)
