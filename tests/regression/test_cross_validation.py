"""Held-out fits from moments equal fits on the rows of the other folds, map by map and error by error."""

import math

import pytest
import torch

from fastprobe.regression.cross_validation import of_others
from fastprobe.regression.least_squares import Factorisation, LeastSquares
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments

FOLDS = 4


@pytest.fixture
def rows(residual_rows, randn):
    x = residual_rows(150, 6, torch.float64)
    return x, x @ randn(6, 3) + randn(150, 3) + 40


def fitted(x, y, fold, alpha=0.0):
    moments = Moments.zero(MomentPlan.of([("x", "y")], {"x": x.shape[1], "y": y.shape[1]}, folds=FOLDS))
    moments.update_({"x": x, "y": y}, fold)
    source = Factorisation.of(moments, "x", LeastSquares(alpha=alpha))
    return source, source.fit("y")


def ridge_of(x, y, alpha):
    """Return coefficients and intercept of the ridge of y on x, from the rows."""
    d = x.shape[1]
    left = torch.cat([x - x.mean(0), math.sqrt(alpha) * torch.eye(d, dtype=x.dtype)])
    coef = torch.linalg.lstsq(left, torch.cat([y - y.mean(0), y.new_zeros(d, y.shape[1])])).solution
    return coef, y.mean(0) - x.mean(0) @ coef


@pytest.mark.parametrize("alpha", [0.0, 25.0])
def test_fold_maps_predict_as_the_fits_on_the_rows_of_the_other_folds(alpha, rows):
    x, y = rows
    fold = torch.arange(150) % FOLDS
    source, fit = fitted(x, y, fold, alpha)

    maps = source.fold_maps(fit)

    assert list(maps) == [0, 1, 2, 3]
    z = (x - source.x_mean) @ source.whitening.matrix
    for f, (W, intercept) in maps.items():
        coef, expected_intercept = ridge_of(x[fold != f], y[fold != f], alpha)
        torch.testing.assert_close(z @ W + intercept, x @ coef + expected_intercept, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 25.0])
def test_rss_and_tss_of_every_fold_are_those_of_its_rows(alpha, rows):
    x, y = rows
    fold = torch.arange(150) % FOLDS
    _, fit = fitted(x, y, fold, alpha)

    for f in range(FOLDS):
        others, held = fold != f, fold == f
        coef, intercept = ridge_of(x[others], y[others], alpha)
        rss = (y[held] - x[held] @ coef - intercept).square().sum()
        tss = (y[held] - y[others].mean(0)).square().sum()
        torch.testing.assert_close(fit.held_out.rss[f], rss, rtol=1e-8, atol=0)
        torch.testing.assert_close(fit.held_out.tss[f], tss, rtol=1e-10, atol=0)


def test_folds_without_tokens_have_no_map(rows):
    source, fit = fitted(*rows, torch.arange(150) % 2 * 2)

    assert list(source.fold_maps(fit)) == [0, 2]
    assert len(fit.held_out.rss) == 2


def test_one_fold_with_tokens_gives_no_cross_validation(rows):
    source, fit = fitted(*rows, torch.ones(150, dtype=torch.int64))

    assert source.folds is None
    assert source.fold_maps(fit) == {}
    assert fit.held_out.coef.shape == (0, 6, 3)


def test_scatters_of_the_other_folds_are_those_of_their_rows(rows):
    (x, y), n = rows, torch.tensor([100.0, 50.0], dtype=torch.float64)
    parts = list(zip(x.split([100, 50]), y.split([100, 50]), strict=True))
    S_xy = (x - x.mean(0)).mT @ (y - y.mean(0))

    for f, (a, b) in enumerate(parts):
        t = (b - y.mean(0)).sum(0)
        found = of_others(S_xy, a.mT @ b, a.sum(0), x.mean(0), t, y.mean(0), n[f], n[1 - f], out=torch.empty_like(S_xy))

        a, b = parts[1 - f]
        torch.testing.assert_close(found, (a - a.mean(0)).mT @ (b - b.mean(0)), rtol=1e-9, atol=1e-7)
