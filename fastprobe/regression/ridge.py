"""Choice of the ridge penalty with the smallest held-out error, from moments alone."""

from __future__ import annotations

from fastprobe.regression.least_squares import Factorisation, Fit, LeastSquares
from fastprobe.regression.moments import Moments

RELATIVE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties to try besides 0, over the mean sum of squares of a column of x about its mean."""

ALIKE = 1e-6
"""Smallest difference in held-out r2 that counts: float32 products cannot tell smaller ones from rounding errors."""


def best_ridge(moments: Moments, x: str, y: str, alpha: float | None = None) -> tuple[Factorisation, Fit]:
    """Fit y on x with the ridge penalty of the smallest squared error on held-out folds.

        alpha = argmin Σ_f RSS_f(alpha) over 0 and RELATIVE trace(S_xx) / d

    The moments of the folds give every RSS_f, so no token is read again. Of penalties that differ by less than
    ``ALIKE`` the smallest wins. Without folds the penalty is 0.

    Args:
        moments: sums of a plan that covers the fit.
        x: name of the source block.
        y: name of the target block.
        alpha: a fixed penalty instead.
    """
    plain = Factorisation.of(moments, x, LeastSquares(alpha=alpha or 0.0))
    best = plain, plain.fit(y)
    if alpha is not None or plain.folds is None or not plain.whitening.rank:
        return best
    S_xx = plain.whitening.source.scatter
    unit = float(S_xx.trace()) / len(S_xx)
    ridge = plain
    for relative in RELATIVE:
        ridge = ridge.with_alpha(relative * unit)
        fit = ridge.fit(y)
        least, held_out = best[1].held_out.rss.sum(), fit.held_out
        if float(held_out.rss.sum()) < float(least - ALIKE * held_out.tss.sum()):
            best = ridge, fit
    return best
