"""Least-squares maps of elements, for ``mode="linear"``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from fastprobe.ablations.replacements import AffineMaps
from fastprobe.models.points import Element
from fastprobe.regression.least_squares import LeastSquares, Solution
from fastprobe.regression.ridge import best_ridge
from fastprobe.scan.linearity import linearity


def fit_linear_maps(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    elements: Sequence[Element],
    folds: int,
    alpha: float | None,
    progress: bool,
) -> dict[Element, tuple[AffineMaps, Solution]]:
    """Return two fits of every element: the maps of its folds, which an ablation uses, and the map of all tokens.

    Args:
        model: the unedited model.
        batches: the tokens to fit on.
        elements: what to fit.
        folds: sequence s is in fold ``s mod folds``; 0 for one map.
        alpha: ridge penalty; ``None`` to choose it by cross-validation.
        progress: show a progress bar on standard error.
    """
    names, layers = ({e.name for e in elements}, {e.start for e in elements})
    scan = linearity(
        model,
        batches,
        elements=sorted(names),
        layers=sorted(layers),
        folds=folds,
        score_sequences=0,
        cka="none",
        schedule="batch",  # layer by layer keeps no moments
        method=LeastSquares(alpha=alpha or 0.0),
        progress=progress,
    )
    found = {}
    for name, start, stop, x, y, _ in scan.config["fits"]:
        assert scan.moments is not None
        source, fit = best_ridge(scan.moments, x, y, alpha)
        found[Element(name, start, stop)] = AffineMaps.of(source, fit), source.solution(fit)
    return found
