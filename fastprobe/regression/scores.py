"""Every column of a linearity row that follows from moments; definitions in the README's table of columns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastprobe.regression.least_squares import Factorisation, Fit

MARK = 1e-3
"""A row whose error bound exceeds this is marked in tables."""

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
    "cone",
    "cka",
    "rank",
    "condition",
    "error_bound",
)
"""The numbers of a row, in order. One that does not exist for a row is ``None``."""


def moment_columns(source: Factorisation, fit: Fit, y: str) -> dict[str, Any]:
    """The columns of one pair (x, y) that need no second look at the tokens."""
    moments = source.moments
    n = int(source.n)
    r2 = explained(fit.rss, fit.tss)
    r2_cv, r2_cv_se = cross_validated(fit.fold_rss, fit.fold_tss) if r2 is not None else (None, None)
    square = len(fit.coef) == fit.coef.shape[1]
    return {
        "nonlinearity": None if r2_cv is None else 1 - r2_cv,
        "r2": r2,
        "r2_adjusted": None if r2 is None or n - source.rank <= 1 else 1 - (1 - r2) * (n - 1) / (n - source.rank - 1),
        "r2_cv": r2_cv,
        "r2_cv_se": r2_cv_se,
        "r2_uniform": _uniform(fit),
        "r2_residual": explained(*source.residual_scores(fit)) if square else None,
        "r2_identity": _identity(source, fit) if square else None,
        "cosine": None,
        "cosine_cv": None,
        "cosine_objective": None,
        "cone": _cone(source, y),
        "cka": _cka(source, fit, y),
        "rank": source.rank,
        "condition": source.condition,
        "error_bound": fit.error_bound,
        "tokens": n,
        "dtype": moments.dtype,
        "backend": moments.backend,
        "note": _note(n, len(fit.coef), fit.error_bound),
    }


def _note(tokens: int, width: int, error_bound: float) -> str:
    """What a reader must know before believing the row; empty for a sound one."""
    notes = []
    if tokens <= width + 1:
        notes.append(
            f"{tokens} tokens for {width} columns: any map fits them, only r2_cv and nonlinearity mean anything"
        )
    if error_bound > MARK:
        notes.append(
            f"error bound over {MARK:g}: the sums cannot tell this r2 to three digits; try --score-sequences all, "
            "--exact or --dtype float64"
        )
    return "; ".join(notes)


def explained(rss: Tensor, tss: Tensor) -> float | None:
    """1 - RSS / TSS, or ``None`` for a target that does not vary."""
    total = float(tss.sum())
    return 1 - float(rss.sum()) / total if total > 0 else None


def cross_validated(rss: Tensor, tss: Tensor) -> tuple[float | None, float | None]:
    """1 - sum RSS_f / sum TSS_f and its jackknife standard error over folds."""
    folds = len(rss)
    if folds < 2 or float(tss.sum()) <= 0:
        return None, None
    if not (tss.sum() - tss > 0).all():
        return 1 - float(rss.sum() / tss.sum()), None  # one fold holds all that varies
    without = 1 - (rss.sum() - rss) / (tss.sum() - tss)
    se = math.sqrt((folds - 1) / folds * float((without - without.mean()).square().sum()))
    return 1 - float(rss.sum() / tss.sum()), se


def _uniform(fit: Fit) -> float | None:
    """Mean r2 over the output coordinates that vary."""
    varies = fit.tss > 0
    return float((1 - fit.rss[varies] / fit.tss[varies]).mean()) if varies.any() else None


def _identity(source: Factorisation, fit: Fit) -> float | None:
    """What predicting y by x itself would score."""
    x_mean = source.moments.origin(source.x) + source.mean
    difference = fit.tss + source.scatter.diagonal() - 2 * fit.cross.diagonal()
    difference = difference + source.n * (fit.y_mean - x_mean).square()
    return explained(difference, fit.tss)


def _cone(source: Factorisation, y: str) -> float | None:
    """Mean cosine between y of different tokens, from the sum of the unit vectors."""
    count = int(source.moments.unit_counts[y])
    if count < 2:
        return None
    return (float(source.moments.units[y].square().sum()) - count) / (count * (count - 1))


def _cka(source: Factorisation, fit: Fit, y: str) -> float | None:
    """Linear CKA of x and y; ``None`` where the Gram matrix of y was not kept."""
    moments, n = source.moments, source.n
    try:
        gram = moments.cross(y, y).sum(0)
    except KeyError:
        return None
    if float(fit.tss.sum()) <= 0:
        return None
    y_mean = fit.y_mean - moments.origin(y)
    norms = source.scatter.norm() * (gram - n * torch.outer(y_mean, y_mean)).norm()
    return float(fit.cross.square().sum() / norms) if norms > 0 else None
