"""The ridge penalty chosen from moments, against scikit-learn on the rows."""

import pytest
import torch
from sklearn.linear_model import Ridge

from fastprobe.regression.least_squares import Factorisation, LeastSquares
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments
from fastprobe.regression.ridge import RELATIVE, best_ridge

FOLDS = 4


def moments_of(x, y, folds=FOLDS):
    plan = MomentPlan.of([("x", "y")], {"x": x.shape[1], "y": y.shape[1]}, folds=folds)
    moments = Moments.zero(plan)
    moments.update_({"x": x, "y": y}, torch.arange(len(x)) % max(folds, 1))
    return moments


def held_out_error(x, y, alpha):
    fold, error = torch.arange(len(x)) % FOLDS, 0.0
    for f in range(FOLDS):
        train = fold != f
        model = Ridge(alpha=alpha).fit(x[train].numpy(), y[train].numpy())
        error += float((y[~train] - torch.from_numpy(model.predict(x[~train].numpy()))).square().sum())
    return error


@pytest.mark.parametrize("noise", [0.1, 3.0, 30.0])
def test_the_penalty_has_the_smallest_held_out_error_of_those_tried(noise, residual_rows, randn):
    x = residual_rows(90, 30, torch.float64)
    y = (x - x.mean(0)) @ randn(30, 5) / 5 + noise * randn(90, 5)

    source, fit = best_ridge(moments_of(x, y), "x", "y")

    unit = float((x - x.mean(0)).square().sum()) / 30
    tried = {alpha: held_out_error(x, y, alpha) for alpha in (1e-12, *(r * unit for r in RELATIVE))}
    assert float(fit.held_out.rss.sum()) == pytest.approx(min(tried.values()), rel=1e-5)
    assert source.method.alpha == pytest.approx(min(tried, key=tried.get), abs=1e-9)


def test_noisier_targets_get_a_larger_penalty(residual_rows, randn):
    x = residual_rows(90, 30, torch.float64)
    clean, noise = (x - x.mean(0)) @ randn(30, 5) / 5, randn(90, 5)

    penalties = [best_ridge(moments_of(x, clean + s * noise), "x", "y")[0].method.alpha for s in (0.01, 1.0, 100.0)]

    assert penalties == sorted(penalties)
    assert penalties[0] < penalties[2]


def test_an_affine_target_gets_no_penalty(residual_rows, randn):
    x = residual_rows(200, 12)

    source, fit = best_ridge(moments_of(x, (x.double() @ randn(12, 4) + 3).float()), "x", "y")

    assert source.method.alpha == 0
    assert float(fit.rss.sum() / fit.tss.sum()) < 1e-6


def test_a_given_penalty_is_used_and_without_folds_there_is_none(residual_rows, randn):
    x, y = residual_rows(60, 8), randn(60, 2).float()

    assert best_ridge(moments_of(x, y), "x", "y", 7.0)[0].method.alpha == 7.0
    assert best_ridge(moments_of(x, y, folds=0), "x", "y")[0].method.alpha == 0.0


def test_with_alpha_equals_a_new_factorisation(residual_rows, randn):
    moments = moments_of(residual_rows(50, 20, torch.float64), randn(50, 3))

    changed = Factorisation.of(moments, "x", LeastSquares(alpha=0.5)).with_alpha(40.0).fit("y")

    anew = Factorisation.of(moments, "x", LeastSquares(alpha=40.0)).fit("y")
    torch.testing.assert_close(changed.coef, anew.coef, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(changed.held_out.rss, anew.held_out.rss, rtol=1e-9, atol=0)
