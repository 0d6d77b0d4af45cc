"""Scores of a linearity row: one function a column, each with its equation.

n tokens, x of width d, y of width k, ŷ the fitted affine map of x. Sums are over tokens.

    S_xx = Σ (x - x̄)(x - x̄)^T,   S_xy = Σ (x - x̄)(y - ȳ)^T,   S_yy = Σ (y - ȳ)(y - ȳ)^T
    RSS_k = Σ (y_k - ŷ_k)^2,      TSS_k = Σ (y_k - ȳ_k)^2          of output coordinate k
    RSS = Σ_k RSS_k,              TSS = Σ_k TSS_k
    RSS_f, TSS_f                  of held-out fold f: regression/cross_validation.py

A score that does not exist for a row is ``None``. ``rank`` and ``condition`` are defined in regression/whitening.py,
``error_bound`` in regression/error_bounds.py. The cosines need the rows themselves: ops/score.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from fastprobe.regression.evidence import NEEDED, cannot_be_said, tokens_for_map
from fastprobe.regression.least_squares import Factorisation, Fit
from fastprobe.regression.whitening import Whitening

MARK = 1e-3
"""Tables mark a row whose error bound exceeds this."""

COLUMNS = (
    "nonlinearity",
    "r2",
    "r2_adjusted",
    "r2_cv",
    "r2_cv_se",
    "r2_uniform",
    "r2_residual",
    "r2_identity",
    "cosine",
    "cosine_cv",
    "cosine_objective",
    "anisotropy",
    "cka",
    "rank",
    "condition",
    "error_bound",
)
"""The numbers of a row, in order."""

RENAMED = {"cone": "anisotropy"}
"""Old column name -> new one. Saved results are read with either; arguments accept the old name until version 0.3."""


def current_column(name: str) -> str:
    """Return the present name of a column; warn if ``name`` is an old one."""
    if name not in RENAMED:
        return name
    warnings.warn(f"column {name!r} is now {RENAMED[name]!r}; use that name", DeprecationWarning, stacklevel=3)
    return RENAMED[name]


def moment_columns(source: Factorisation, fit: Fit, y: str) -> dict[str, Any]:
    """Return the columns of the row of one pair (x, y), in order.

    The scores follow from moments. ``tokens`` to ``note`` say what they are computed from. The
    cosines need the rows themselves: they are ``None``, for the score pass of a scan to fill in.
    """
    moments, n, whitening = source.moments, int(source.n), source.whitening
    d, k = fit.coef.shape
    S_xx, S_xy = whitening.source.scatter, fit.cross_scatter
    r2 = r2_score(fit.rss, fit.tss)
    held_out = (fit.held_out.rss, fit.held_out.tss)
    varies = r2 is not None  # where y is constant, fit.tss is exactly 0; held-out and cross sums keep rounding errors
    S_yy = _target_scatter(source, fit, y)
    cv = r2_cv(*held_out) if varies else None
    needed = tokens_for_map(n, d, nonlinearity(cv))
    return {
        "nonlinearity": nonlinearity(cv),
        "r2": r2,
        "r2_adjusted": r2_adjusted(r2, n, whitening.rank),
        "r2_cv": cv,
        "r2_cv_se": r2_cv_se(*held_out) if varies else None,
        "r2_uniform": r2_uniform(fit.rss, fit.tss),
        "r2_residual": r2_residual(*source.residual_sums(fit)) if d == k else None,
        "r2_identity": r2_identity(S_xx, S_xy, fit.tss, n, source.x_mean, fit.y_mean) if d == k else None,
        "cosine": None,
        "cosine_cv": None,
        "cosine_objective": None,
        "anisotropy": anisotropy(moments.units[y], int(moments.unit_counts[y])),
        "cka": cka(S_xx, S_xy, S_yy) if S_yy is not None and varies and whitening.rank else None,
        "rank": whitening.rank,
        "condition": whitening.condition,
        "error_bound": fit.error_bound,
        "tokens": n,
        "dtype": moments.dtype,
        "backend": moments.backend,
        "factorisation": whitening.method,
        NEEDED: needed,
        "note": _note(n, needed, whitening, fit.error_bound),
    }


def r2_score(rss: Tensor, tss: Tensor) -> float | None:
    """Column ``r2``: the share of the variance of y that the map explains, fitted and scored on all tokens.

        r2 = 1 - RSS / TSS

    0 to 1 for least squares, up to rounding errors. ``None`` if TSS = 0: y is constant. Equal to scikit-learn's
    ``r2_score(multioutput="variance_weighted")``. For pure noise its mean is d / (n - 1), not 0.

    Args:
        rss: ``(k,)`` RSS_k.
        tss: ``(k,)`` TSS_k.
    """
    total = float(tss.sum())
    return 1 - float(rss.sum()) / total if total > 0 else None


def r2_adjusted(r2: float | None, n: int, r: int) -> float | None:
    """Column ``r2_adjusted``: r2 corrected for the r dimensions of x (Theil, 1961).

        r2_adjusted = 1 - (1 - r2) (n - 1) / (n - r - 1)

    At most 1, and 0 on average for pure noise. ``None`` if n <= r + 1, or without ``r2``.

    Args:
        r2: of the fit.
        n: number of tokens.
        r: rank of x.
    """
    return None if r2 is None or n - r <= 1 else 1 - (1 - r2) * (n - 1) / (n - r - 1)


def r2_cv(rss: Tensor, tss: Tensor) -> float | None:
    """Column ``r2_cv``: r2 of held-out folds, each predicted by the fit on the other folds (cross-validation).

        r2_cv = 1 - Σ_f RSS_f / Σ_f TSS_f

    At most 1; negative if the map predicts worse than the mean of the other folds. ``None`` with fewer than two folds,
    or if y is constant.

    Args:
        rss: ``(F,)`` RSS_f.
        tss: ``(F,)`` TSS_f, about the mean of the other folds.
    """
    if len(rss) < 2 or float(tss.sum()) <= 0:
        return None
    return 1 - float(rss.sum() / tss.sum())


def r2_cv_se(rss: Tensor, tss: Tensor) -> float | None:
    """Column ``r2_cv_se``: the standard error of ``r2_cv`` by the jackknife over folds (Tukey, 1958).

        θ_f = 1 - (Σ_g RSS_g - RSS_f) / (Σ_g TSS_g - TSS_f)         r2_cv without fold f
        r2_cv_se = ((F - 1) / F  Σ_f (θ_f - θ̄)^2)^1/2

    0 or more. ``None`` without ``r2_cv``, or if one fold holds all variance of y.

    Args:
        rss: ``(F,)`` RSS_f.
        tss: ``(F,)`` TSS_f.
    """
    F = len(rss)
    if r2_cv(rss, tss) is None or not (tss.sum() - tss > 0).all():
        return None
    theta = 1 - (rss.sum() - rss) / (tss.sum() - tss)
    return math.sqrt((F - 1) / F * float((theta - theta.mean()).square().sum()))


def nonlinearity(r2_cv: float | None) -> float | None:
    """Column ``nonlinearity``: the share of the variance of y that no affine map of x predicts on held-out tokens.

        nonlinearity = 1 - r2_cv

    0 or more; above 1 if the map predicts worse than the mean. ``None`` without ``r2_cv``.
    """
    return None if r2_cv is None else 1 - r2_cv


def r2_uniform(rss: Tensor, tss: Tensor) -> float | None:
    """Column ``r2_uniform``: the mean r2 of the output coordinates, each with the same weight.

        K = {k: TSS_k > 0}
        r2_uniform = 1 / |K|  Σ_{k in K} (1 - RSS_k / TSS_k)

    0 to 1 for least squares. ``None`` if K is empty. Without constant coordinates it equals scikit-learn's
    ``r2_score(multioutput="uniform_average")``.

    Args:
        rss: ``(k,)`` RSS_k.
        tss: ``(k,)`` TSS_k.
    """
    K = tss > 0
    return float((1 - rss[K] / tss[K]).mean()) if K.any() else None


def r2_residual(rss: Tensor, tss: Tensor) -> float | None:
    """Column ``r2_residual``: r2 of the target v = y - x, which has no skip connection.

        TSS_v = tr(S_yy - 2 S_xy + S_xx)
        RSS_v = Σ |v - v̂|^2, v̂ the fit of v on x
        r2_residual = 1 - RSS_v / TSS_v

    0 to 1 for least squares. ``None`` if y - x is constant, or if x and y differ in width. Without a ridge and for x of
    full rank RSS_v = RSS.

    Args:
        rss: ``(k,)`` of v; see :meth:`Factorisation.residual_sums`.
        tss: ``(k,)`` of v.
    """
    return r2_score(rss, tss)


def r2_identity(S_xx: Tensor, S_xy: Tensor, tss: Tensor, n: int, x_mean: Tensor, y_mean: Tensor) -> float | None:
    """Column ``r2_identity``: r2 of the prediction ŷ = x.

        Σ |y - x|^2 = tr(S_yy + S_xx - 2 S_xy) + n |ȳ - x̄|^2
        r2_identity = 1 - Σ |y - x|^2 / TSS

    At most 1, without a lower limit. ``None`` if y is constant, or if x and y differ in width.

    Args:
        S_xx: ``(d, d)``.
        S_xy: ``(d, d)``.
        tss: ``(d,)`` TSS_k, the diagonal of S_yy.
        n: number of tokens.
        x_mean: ``(d,)``.
        y_mean: ``(d,)``.
    """
    rss = tss + S_xx.diagonal() - 2 * S_xy.diagonal() + n * (y_mean - x_mean).square()
    return r2_score(rss, tss)


def anisotropy(unit_sum: Tensor, m: int) -> float | None:
    """Column ``anisotropy``: the mean cosine between y of two different tokens (Ethayarajh, 2019).

        e_i = y_i / |y_i|                                            over the m tokens with y_i != 0
        anisotropy = 1 / (m (m - 1))  Σ_{i != j} e_i · e_j
                   = (|Σ_i e_i|^2 - m) / (m (m - 1))

    From -1 / (m - 1) to 1. ``None`` if m < 2. Read ``cosine`` against it: in a narrow cone all cosines are large.

    Args:
        unit_sum: ``(k,)`` Σ_i e_i.
        m: number of tokens with y != 0.
    """
    if m < 2:
        return None
    return (float(unit_sum.square().sum()) - m) / (m * (m - 1))


def cka(S_xx: Tensor, S_xy: Tensor, S_yy: Tensor) -> float | None:
    """Column ``cka``: linear centred kernel alignment of x and y (Kornblith et al., 2019).

        cka = |S_xy|_F^2 / (|S_xx|_F |S_yy|_F)

    0 to 1. ``None`` if x or y is constant, or if the moments do not hold the Gram matrix of y. Powers of two scale x
    and y first, so that no square overflows or underflows. They change no digit.

    Args:
        S_xx: ``(d, d)``.
        S_xy: ``(d, k)``.
        S_yy: ``(k, k)``.
    """
    a, b = _exponent(S_xx), _exponent(S_yy)  # of the scatters: those of x and y are half as large
    if max(abs(a), abs(b)) > 100:  # squares of what is smaller are far from the limits
        S_xx, S_xy, S_yy = S_xx * 2.0 ** (-2 * a), S_xy * 2.0 ** (-a - b), S_yy * 2.0 ** (-2 * b)
    norms = S_xx.norm() * S_yy.norm()
    return float(torch.linalg.vector_norm(S_xy).square() / norms) if norms > 0 else None


def _exponent(scatter: Tensor) -> int:
    """Return half of the binary exponent of the largest entry."""
    return max(math.frexp(float(scatter.abs().max()))[1] // 2, -500)  # 2^1000 is finite


def _target_scatter(source: Factorisation, fit: Fit, y: str) -> Tensor | None:
    """Return S_yy, (k, k), from the Gram matrix of y about its origin; ``None`` without one or if it underflowed."""
    if not source.moments.has(y, y):
        return None
    y_mean = fit.y_mean - source.moments.origin(y)
    S_yy = source.moments.cross(y, y).sum(0) - source.n * torch.outer(y_mean, y_mean)
    tss = float(fit.tss.sum())
    return S_yy if abs(float(S_yy.trace()) - tss) <= 1e-3 * tss else None


def _note(n: int, needed: int, whitening: Whitening, error_bound: float) -> str:
    """Return a warning for the reader of a row; empty for a sound row."""
    notes = []
    if needed:
        notes.append(cannot_be_said(n, needed))
    if error_bound > MARK and (unresolved := int(whitening.source.unresolved.sum())):
        notes.append(f"{unresolved} columns of x vary too little to be told from constant ones and are left out")
    if error_bound > MARK:
        notes.append(
            f"error bound over {MARK:g}: the sums cannot tell this r2 to three digits; try --score-sequences all, "
            "--exact or --dtype float64"
        )
    return "; ".join(notes)
