"""Bounds on the error of r2 from the rounding errors of the sums.

r2 = 1 - RSS / TSS, where RSS is a difference of sums. With gamma the relative error of a Gram entry and W the
coefficients, first order perturbation gives

    |ΔRSS| <= gamma reach,   reach = Σ_k (|y_k| + Σ_i |W_ik| |x_i|)^2

with |y_k| and |x_i| the lengths of columns about the origins. The residual is a difference of terms, and reach is their
squared size. It grows with the condition of x, through |W|.

Directions left out of the fit could explain more. They count as constant where all of them lie within the noise of the
sums and the smallest kept eigenvalue is far above it. Where the spectrum runs down into the noise instead, they could
explain all of RSS, and the bound is RSS / TSS. This test of the spectrum is a heuristic: it accepts a wrong gap for one
in a hundred random float32 sources whose singular values run evenly from 1 down to 1e-7.
"""

from __future__ import annotations

from torch import Tensor

from fastprobe.regression.spectrum import ACCUMULATION_ERROR
from fastprobe.regression.whitening import Whitening

PREDICTION_ERROR = {"float64": 2**-50, "float32": 2**-21, "float16": 2**-21, "bfloat16": 2**-21}
"""Largest error of a prediction over the size of its terms, by the dtype of the rows: two products in a row."""


def r2_error_bound(
    whitening: Whitening, coef: Tensor, y_squares: Tensor, rss: Tensor, tss: Tensor, precision: str
) -> float:
    """Column ``error_bound``: a bound on the absolute error of ``r2``.

        max(gamma reach / TSS,  RSS / TSS if directions were left out within the noise)

    0 or more; 0 for a constant target.

    Args:
        whitening: of the source x.
        coef: ``(d, k)``.
        y_squares: ``(k,)`` sums of squares about the origin.
        rss: ``(k,)``.
        tss: ``(k,)``.
        precision: dtype that the moments were summed in.
    """
    total = float(tss.sum())
    if total <= 0:
        return 0.0
    gamma = ACCUMULATION_ERROR[precision]
    return max(gamma * _reach(whitening, coef, y_squares) / total, _unknown(whitening, rss, total))


def refined_r2_error_bound(
    whitening: Whitening, coef: Tensor, y_squares: Tensor, rss: Tensor, tss: Tensor, gain: Tensor, precision: str
) -> float:
    """Column ``error_bound`` after a step of refinement, when RSS was summed from residuals.

        gain / TSS + 2 (ρ e)^1/2 + e + gamma ρ Σ|y|^2 / TSS,   ρ = RSS / TSS,  e = δ^2 reach / TSS

    The step reduced RSS by ``gain``, and a further step would gain less. δ is ``PREDICTION_ERROR``: the error of a
    prediction is at most δ times the size of its terms. An error ε in a residual of length l changes its square by at
    most 2 l ε + ε^2. The last term is the error of summing the squared residuals. As above, directions left out within
    the noise raise the bound to RSS / TSS.
    """
    total = float(tss.sum())
    if total <= 0:
        return 0.0
    left, rounding = float(rss.sum()) / total, PREDICTION_ERROR[precision] ** 2
    rounding *= _reach(whitening, coef, y_squares) / total
    bound = float(gain.clamp(min=0).sum()) / total + 2 * (left * rounding) ** 0.5 + rounding
    bound += ACCUMULATION_ERROR[precision] * left * float(y_squares.sum()) / total
    return max(bound, _unknown(whitening, rss, total))


def _reach(whitening: Whitening, coef: Tensor, y_squares: Tensor) -> float:
    """Return Σ_k (|y_k| + Σ_i |W_ik| |x_i|)^2."""
    return float((y_squares.sqrt() + coef.abs().mT @ whitening.spectrum.norms).square().sum())


def _unknown(whitening: Whitening, rss: Tensor, total: float) -> float:
    """Return the share of y that the directions left out could explain; 0 where they are safe to leave out."""
    eigenvalues, noise = whitening.spectrum.eigenvalues, whitening.noise
    left_out = eigenvalues[~whitening.kept & (eigenvalues != 0)]
    if whitening.alpha or not len(left_out) or not whitening.rank:
        return 0.0
    safe = float(left_out.abs().max()) <= noise and float(whitening.eigenvalues[0]) >= 100 * noise
    return 0.0 if safe else float(rss.sum()) / total
