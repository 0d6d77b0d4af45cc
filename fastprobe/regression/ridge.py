"""The ridge penalty that predicts best out of fold, from moments alone."""

from __future__ import annotations

from fastprobe.regression.least_squares import Factorisation, Fit, LeastSquares
from fastprobe.regression.moments import Moments
from fastprobe.regression.spectrum import Spectrum

RELATIVE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties that are tried besides none, over the mean sum of squares of a column of x about its mean."""

ALIKE = 1e-6
"""Differences in held-out r2 that sums of float32 products may not tell from none."""


def best_ridge(moments: Moments, x: str, y: str, alpha: float | None = None) -> tuple[Factorisation, Fit]:
    """The least-squares fit of y on x with the penalty of the least squared error on held-out folds.

    Held-out errors are quadratic forms in the moments of the folds, so no token is looked at. Of penalties that do
    alike the smallest is taken; where there are no folds it is none.

    Args:
        moments: sums of a plan that covers the fit.
        x: the source block.
        y: the target block.
        alpha: the penalty, if it is to be no other.
    """
    spectrum = Spectrum.of(moments, x)
    plain = Factorisation(moments, x, LeastSquares(alpha=alpha or 0.0), spectrum)
    best = plain, plain.fit(y)
    if alpha is not None or not plain.folds or not plain.rank:
        return best
    unit = float(plain.scatter.trace()) / len(plain.scatter)
    ridge = Factorisation(moments, x, LeastSquares(alpha=RELATIVE[0] * unit), spectrum)
    for relative in RELATIVE:
        ridge = ridge.with_alpha(relative * unit)
        fit = ridge.fit(y)
        if float(fit.fold_rss.sum()) < float(best[1].fold_rss.sum() - ALIKE * fit.fold_tss.sum()):
            best = ridge, fit
    return best
