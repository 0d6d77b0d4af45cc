"""Iterative refinement of a fit: one step, from the residuals of a second pass over the rows.

Moments give RSS as a difference of sums, with an error that grows with the condition of x. Residuals of rows have no
such difference: the squared error of a slightly wrong map is off by the square of the map's error only. The sum of
z r^T, which is 0 for the exact map, corrects the map.

With W the map from whitened coordinates z (Σ z = 0, Σ z z^T = I), Λ the ridge, and for the residuals r of all rows

    R = Σ z r^T,   s = Σ r,   Q = Σ |r|^2

the step and the squared residuals after it are

    ΔW = (I + Λ)^-1 (R - Λ W),      Δb = s / n
    Σ |r - ΔW^T z - Δb|^2 = Q - <ΔW, 2 R - ΔW> - |s|^2 / n

The map without fold f has its own step. In the symbols of :mod:`~fastprobe.regression.cross_validation`, with R, s of
its residuals on the other folds and R', s', Q' of those on fold f:

    E  = Σ_¬f (z - α_f) r^T - Λ W_f = R + a_f s^T / m_f - Λ W_f
    ΔW = M_f^-1 E,      Δb = Σ_¬f (r - ΔW^T z) / m_f = (s + ΔW^T a_f) / m_f
    RSS_f = Q' - 2 <ΔW, R'> - 2 Δb · s' + <ΔW, A_f ΔW> + 2 Δb · (ΔW^T a_f) + n_f |Δb|^2
    <ΔW, A_f ΔW> = |ΔW|^2 + <ΔW, Λ ΔW> - <ΔW, E> - |ΔW^T a_f|^2 / m_f
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fastprobe.errors import InputError
from fastprobe.ops.products import matmul
from fastprobe.ops.rows import select_rows
from fastprobe.ops.score import ResidualSums, score
from fastprobe.regression.error_bounds import refined_r2_error_bound
from fastprobe.regression.least_squares import Factorisation, Fit


class Refinement:
    """Sums of the residuals of one fit over a second pass of its rows.

    Args:
        source: factorisation behind the fit.
        fit: the fit to refine.
        y: name of the target block.
        backend: implementation of the operation ``score``.
    """

    def __init__(self, source: Factorisation, fit: Fit, y: str, backend: str = "auto"):
        device = fit.coef.device
        self.source, self.fit, self.y, self.backend = source, fit, y, backend
        self.dtype = torch.float64 if source.moments.precision == "float64" else torch.float32
        self.rows = 0

        def zero() -> ResidualSums:
            return ResidualSums.zero(source.whitening.matrix.shape[1], fit.coef.shape[1], device)

        self.residuals = zero()
        self.fold_maps = source.fold_maps(fit)
        # Of the map without fold f: on the other folds, and on fold f.
        self.fold_residuals = {f: (zero(), zero()) for f in self.fold_maps}
        self._x_mean = source.x_mean.to(self.dtype)
        self._whiten = source.whitening.matrix.to(self.dtype)

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor, fold: Tensor) -> None:
        """Add rows that the moments hold.

        Args:
            x: ``(N, d)``.
            y: ``(N, k)``.
            fold: ``(N,)`` int64, as in :meth:`Moments.update_`; rows with a negative fold do not count.
        """
        index = (fold >= 0).nonzero().flatten()
        self.rows += len(index)
        whitened = matmul(select_rows(x, index).to(self.dtype) - self._x_mean, self._whiten)
        # About the mean: float32 cannot hold a large mean and small deviations in one number.
        target = select_rows(y, index).to(self.dtype) - self.fit.y_mean.to(self.dtype)
        rounding = self.fit.y_mean.to(self.dtype).double() - self.fit.y_mean
        scoring = score.on_if_implemented(self.backend)
        scoring(whitened, self.fit.whitened_coef, -rounding, target, residual=self.residuals)
        for f, (coef, intercept) in self.fold_maps.items():
            for held_out, residuals in enumerate(self.fold_residuals[f]):
                some = ((fold[index] == f) == bool(held_out)).nonzero().flatten()
                scoring(whitened[some], coef, intercept - self.fit.y_mean - rounding, target[some], residual=residuals)

    def result(self) -> Fit:
        """Return the refined fit.

        Raises:
            InputError: the number of rows differs from that of the moments.
        """
        if self.rows != int(self.source.n):
            raise InputError(f"refine: rows must be the {int(self.source.n)} rows of the fit, got {self.rows}")
        return refined(self.source, self.fit, self.y, self.residuals, self.fold_residuals)


def refined(
    source: Factorisation,
    fit: Fit,
    y: str,
    residuals: ResidualSums,
    fold_residuals: Mapping[int, tuple[ResidualSums, ResidualSums]],
) -> Fit:
    """Return the fit after one step of refinement.

    Args:
        source: factorisation behind the fit.
        fit: the fit to refine.
        y: name of the target block.
        residuals: sums of the residuals of all rows, with whitened coordinates as x.
        fold_residuals: for every fold the same of the map without it: on the other folds, and on the fold.
    """
    whitening, moments, n = source.whitening, source.moments, source.n
    R, s, Q = residuals
    ridge, W = whitening.ridge, fit.whitened_coef
    dW = (R - ridge[:, None] * W) / (1 + ridge)[:, None]
    gain = (dW * (2 * R - dW)).sum(0) + s.square() / n
    rss = torch.where(fit.tss > 0, Q - gain, torch.zeros_like(gain)).clamp(min=0)
    W = W + dW
    coef, y_mean = whitening.map(W), fit.y_mean + s / n
    y_squares = moments.square(y).sum(0)
    return replace(
        fit,
        coef=coef,
        intercept=y_mean - source.x_mean @ coef,
        whitened_coef=W,
        y_mean=y_mean,
        rss=rss,
        refined=True,
        held_out=replace(fit.held_out, rss=_refined_fold_rss(source, fit, fold_residuals)),
        error_bound=refined_r2_error_bound(
            whitening, coef, fit.cross_scatter, y_squares, rss, fit.tss, gain, moments.precision
        )
        if fit.tss.any()
        else fit.error_bound,
    )


def _refined_fold_rss(
    source: Factorisation, fit: Fit, fold_residuals: Mapping[int, tuple[ResidualSums, ResidualSums]]
) -> Tensor:
    """Return RSS_f, (F,), of the maps without fold f after their own steps."""
    rss, ridge = fit.held_out.rss.clone(), source.whitening.ridge
    if source.folds is None:
        return rss
    for place, (on_others, on_fold) in enumerate(fold_residuals.values()):
        a, n, m = source.folds.a[place], source.folds.n[place], source.folds.m[place]
        R, s, _ = on_others
        E = R + torch.outer(a, s) / m - ridge[:, None] * fit.held_out.coef[place]
        dW = source.folds.solve(place, E)
        dWa = a @ dW
        db = (s + dWa) / m
        quadratic = dW.square().sum() + (ridge @ dW.square()).sum() - (dW * E).sum()
        quadratic -= dWa.square().sum() / m
        R, s, Q = on_fold
        gain = 2 * (dW * R).sum() + 2 * db @ s
        rss[place] = Q.sum() - gain + quadratic + 2 * db @ dWa + n * db.square().sum()
    return rss
