"""Bounds on the error of r2 from the rounding errors of the sums.

r2 = 1 - RSS / TSS, where RSS is a difference of sums. With gamma the relative error of a Gram entry and W the
coefficients, first order perturbation gives

    |ΔRSS| <= gamma reach,   reach = Σ_k (|y_k| + Σ_i |W_ik| |x_i|)^2

with |y_k| and |x_i| the lengths of columns about the origins. The residual is a difference of terms, and reach is their
squared size. It grows with the condition of x, through |W|.

A float32 product below ν = 1e-38 may become 0, which adds n ν Σ_k ((1 + Σ_i |W_ik|)^2 - 1) to the bound.

First order needs eigenvalues of x far above their noise, and what the fit leaves out could explain more. The bound is
at least RSS / TSS if one of these is true:

1. The sums cannot tell a column of x from a constant one, and it is not constant (Scatter.unresolved).
2. A kept eigenvalue is below twice its noise.
3. A direction is left out whose eigenvalue is over the noise, or while a kept one is below 100 times the noise.
4. A direction v is left out whose products with y are over the errors of their sums:

    |v^T D^-1/2 S_xy|^2 > gamma^2 Σ_i (v_i |x_i| D_i^-1/2)^2 Σ_k |y_k|^2

A direction that passes all four counts as constant, as one of the states after a LayerNorm is. The sums cannot tell it
from a direction in which x varies by less than gamma / ρ of its other directions and which explains the share ρ^2 of y.
"""

from __future__ import annotations

from torch import Tensor

from fastprobe.regression.spectrum import ACCUMULATION_ERROR
from fastprobe.regression.whitening import Whitening

PREDICTION_ERROR = {"float64": 2**-50, "float32": 2**-21, "float16": 2**-21, "bfloat16": 2**-21}
"""Largest error of a prediction over the size of its terms, by the dtype of the rows: two products in a row."""

EIGENVECTOR_ERROR = 1e-14
"""Error of a component of an eigenvector."""

UNDERFLOW = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-126, "bfloat16": 2.0**-126}
"""ν: largest product that may become 0, by the dtype of the rows."""


def r2_error_bound(
    whitening: Whitening,
    coef: Tensor,
    cross_scatter: Tensor,
    y_squares: Tensor,
    rss: Tensor,
    tss: Tensor,
    *,
    n: Tensor,
    hidden: Tensor,
    precision: str,
) -> float:
    """Column ``error_bound``: a bound on the absolute error of ``r2``.

        max(gamma reach / TSS,  RSS / TSS if x may explain more) + hidden / TSS

    0 or more; 0 for a constant target; 1 for a target that is not constant, but cannot be told from one.

    Args:
        whitening: of the source x.
        coef: ``(d, k)``.
        cross_scatter: S_xy, ``(d, k)``.
        y_squares: ``(k,)`` sums of squares about the origin.
        rss: ``(k,)``.
        tss: ``(k,)``.
        n: number of tokens.
        hidden: ``(k,)`` largest scatter of coordinates of y that count as constant and may not be.
        precision: dtype that the moments were summed in.
    """
    total, unseen = float(tss.sum()), float(hidden.sum())
    if total <= 0:
        return 1.0 if unseen > 0 else 0.0
    lost = float(((1 + coef.abs().sum(0)).square() - 1).sum() * n) * UNDERFLOW[precision]
    first_order = (ACCUMULATION_ERROR[precision] * _reach(whitening, coef, y_squares) + lost) / total
    return max(first_order, _unknown(whitening, cross_scatter, y_squares, rss, total)) + unseen / total


def refined_r2_error_bound(
    whitening: Whitening,
    coef: Tensor,
    cross_scatter: Tensor,
    y_squares: Tensor,
    rss: Tensor,
    tss: Tensor,
    gain: Tensor,
    precision: str,
) -> float:
    """Column ``error_bound`` after a step of refinement, when RSS was summed from residuals.

        gain / TSS + 2 (ρ e)^1/2 + e + gamma ρ Σ|y|^2 / TSS,   ρ = RSS / TSS,  e = δ^2 reach / TSS

    The step reduced RSS by ``gain``, and a further step would gain less. δ is ``PREDICTION_ERROR``: the error of a
    prediction is at most δ times the size of its terms. An error ε in a residual of length l changes its square by at
    most 2 l ε + ε^2. The last term is the error of summing the squared residuals. As above, the bound is at least
    RSS / TSS if x may explain more. ``tss`` must not be 0.
    """
    total = float(tss.sum())
    left, rounding = float(rss.sum()) / total, PREDICTION_ERROR[precision] ** 2
    rounding *= _reach(whitening, coef, y_squares) / total
    bound = float(gain.clamp(min=0).sum()) / total + 2 * (left * rounding) ** 0.5 + rounding
    bound += ACCUMULATION_ERROR[precision] * left * float(y_squares.sum()) / total
    return max(bound, _unknown(whitening, cross_scatter, y_squares, rss, total))


def _reach(whitening: Whitening, coef: Tensor, y_squares: Tensor) -> float:
    """Return Σ_k (|y_k| + Σ_i |W_ik| |x_i|)^2."""
    return float((y_squares.sqrt() + coef.abs().mT @ whitening.source.norms).square().sum())


def _unknown(whitening: Whitening, cross_scatter: Tensor, y_squares: Tensor, rss: Tensor, total: float) -> float:
    """Return the share of y that x could explain beyond the fit; 0 if what the fit leaves out counts as constant."""
    constant = not bool(whitening.source.unresolved.any()) and (
        bool(whitening.alpha) or not whitening.rank or _left_out_is_constant(whitening, cross_scatter, y_squares)
    )
    return 0.0 if constant else float(rss.sum()) / total


def _left_out_is_constant(whitening: Whitening, cross_scatter: Tensor, y_squares: Tensor) -> bool:
    """Return True if tests 2 to 4 find nothing. A ridge leaves out no direction that matters."""
    source, noise, smallest = whitening.source, whitening.noise, whitening.smallest
    if smallest < 2 * noise:
        return False
    if not len(whitening.left_out):
        return True
    if float(whitening.left_out.abs().max()) > noise or smallest < 100 * noise:
        return False
    v = whitening.null / source.scale[:, None]
    products = (v.mT @ cross_scatter).square().sum(1)
    sizes = (source.norms / source.scale).square().sum()
    errors = whitening.gamma**2 * (v * source.norms[:, None]).square().sum(0) + EIGENVECTOR_ERROR**2 * sizes
    return bool((products <= errors * y_squares.sum()).all())
