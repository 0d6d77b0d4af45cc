"""Fits against scikit-learn, a singular value decomposition, and rows of a planted rank and condition."""

import math

import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.metrics import r2_score

from fastprobe.errors import InputError, NumericalError
from fastprobe.regression.least_squares import LeastSquares, Solution
from fastprobe.regression.linear_fit import LinearFit

FLOATS = [torch.float32, torch.float64]


def fit_of(x, y, **kwargs):
    return LinearFit(x.shape[1], y.shape[1], **kwargs).update(x, y)


def svd_r2(x, y, rcond=1e-12):
    """Return r2 of the fit of y on x with an intercept, by a singular value decomposition in float64."""
    x, y = (rows.double() - rows.double().mean(0) for rows in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)  # the mean of large numbers has a rounding error
    basis, values, _ = torch.linalg.svd(x, full_matrices=False)
    basis = basis[:, values > rcond * values[0]]
    return 1 - float((y - basis @ (basis.mT @ y)).square().sum() / y.square().sum())


def planted(randn, n, d, condition, noise):
    """Return rows x with singular values from 1 to 1 / condition, and y that depends on every direction alike."""
    basis, rotation = torch.linalg.qr(randn(n, d))[0], torch.linalg.qr(randn(d, d))[0]
    spectrum = torch.logspace(0, -math.log10(condition), d, dtype=torch.float64)
    y = basis @ randn(d, 5) + noise * randn(n, 5) / n**0.5
    return math.sqrt(n) * basis * spectrum @ rotation, math.sqrt(n) * y


def test_the_map_equals_that_of_linear_regression(residual_rows, randn):
    x = residual_rows(400, 9, torch.float64)
    y = x @ randn(9, 4) + 7 + randn(400, 4)

    solution = fit_of(x, y).solve()

    reference = LinearRegression().fit(x.numpy(), y.numpy())
    torch.testing.assert_close(solution.coef, torch.from_numpy(reference.coef_).mT, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(solution.intercept, torch.from_numpy(reference.intercept_), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.1, 10.0, 1000.0])
def test_the_map_equals_that_of_ridge(alpha, residual_rows, randn):
    x = residual_rows(300, 9, torch.float64)
    y = x @ randn(9, 4) + 7 + randn(300, 4)

    fit = fit_of(x, y, method=LeastSquares(alpha=alpha))
    solution = fit.solve()

    reference = Ridge(alpha=alpha, solver="cholesky").fit(x.numpy(), y.numpy())
    torch.testing.assert_close(solution.coef, torch.from_numpy(reference.coef_).mT, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(solution.intercept, torch.from_numpy(reference.intercept_), rtol=1e-9, atol=1e-9)
    r2 = r2_score(y.numpy(), reference.predict(x.numpy()), multioutput="variance_weighted")
    assert fit.score("r2") == pytest.approx(r2, abs=1e-10)
    assert solution.alpha == alpha


@pytest.mark.parametrize("folds", [0, 4])
def test_ridge_does_not_penalise_directions_in_which_x_is_constant(folds, residual_rows, randn):
    """Rows after a LayerNorm with weights lie in a hyperplane that is not parallel to any axis."""
    x = torch.nn.functional.layer_norm(residual_rows(400, 12, torch.float64), (12,)) * torch.linspace(0.2, 5, 12)
    y = torch.sin(x @ randn(12, 3)) + randn(400, 3)

    fit = fit_of(x, y, folds=folds, method=LeastSquares(alpha=20.0))

    if not folds:
        assert fit.solve().rank == 11
        expected = torch.from_numpy(Ridge(alpha=20.0).fit(x.numpy(), y.numpy()).predict(x.numpy()))
        torch.testing.assert_close(fit.solve()(x), expected, rtol=0, atol=1e-9)
        return
    rss = tss = 0.0
    fold = torch.arange(400) % folds
    for f in range(folds):
        train, held = fold != f, fold == f
        model = Ridge(alpha=20.0).fit(x[train].numpy(), y[train].numpy())
        rss += float((y[held] - torch.from_numpy(model.predict(x[held].numpy()))).square().sum())
        tss += float((y[held] - y[train].mean(0)).square().sum())
    assert fit.score("r2_cv") == pytest.approx(1 - rss / tss, abs=1e-9)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rank", [1, 3, 11, 12])
def test_a_planted_rank_is_found(rank, dtype, randn):
    # Products of small integers are exact in float32, so the rank is exact in every dtype.
    left, right = (randn(500, rank) * 4).round(), (randn(rank, 12) * 2).round()
    right[:, :rank] += 9 * torch.eye(rank)
    x, y = (left @ right).to(dtype), randn(500, 2, dtype=dtype)

    solution = fit_of(x, y).solve()

    assert solution.rank == rank
    assert abs(fit_of(x, y).score("r2") - svd_r2(x, y)) <= 1e-6


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_duplicated_columns_change_nothing(dtype, randn):
    x, y = randn(300, 5, dtype=dtype), randn(300, 3, dtype=dtype)
    twice = torch.cat([x, x[:, 1:3]], dim=1)

    plain, fit = fit_of(x, y), fit_of(twice, y)

    assert fit.solve().rank == 5
    for column in ("r2", "r2_cv", "r2_adjusted"):
        assert fit.score(column) == pytest.approx(plain.score(column), abs=1e-6), column
    torch.testing.assert_close(fit.solve()(twice), plain.solve()(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, 1000.3, 1 / 3])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_constant_columns_of_x_change_nothing(dtype, value, randn):
    x, y = randn(300, 5, dtype=dtype), randn(300, 3, dtype=dtype)
    wider = torch.cat([x, torch.full((300, 2), value, dtype=dtype)], dim=1)

    plain, fit = fit_of(x, y), fit_of(wider, y)

    assert fit.solve().rank == 5
    for column in ("r2", "r2_cv", "r2_adjusted"):
        assert fit.score(column) == pytest.approx(plain.score(column), abs=1e-6), column
    assert fit.solve().coef[5:].abs().max() <= 1e-9


def test_a_constant_source_explains_nothing(randn):
    y = randn(50, 3)

    scores = fit_of(torch.full((50, 4), 2.0, dtype=torch.float64), y).scores()

    assert (scores["rank"], scores["r2"], scores["condition"]) == (0, pytest.approx(0, abs=1e-12), 1.0)
    # Each fold is predicted by the mean of the others, so RSS_f = TSS_f.
    assert scores["r2_cv"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_mean_of_a_thousand_standard_deviations_loses_no_digits(dtype, randn):
    x = (randn(3000, 8) + 1000).to(dtype)
    y = (x.double() @ randn(8, 3) + randn(3000, 3) - 1000).to(dtype)

    fit = fit_of(x, y)

    assert abs(fit.score("r2") - svd_r2(x, y)) <= 1e-6
    # No batch has the mean of all rows.
    batched = LinearFit(8, 3)
    for start in range(0, 3000, 700):
        batched.update(x[start : start + 700], y[start : start + 700])
    assert batched.score("r2_cv") == pytest.approx(fit.score("r2_cv"), abs=1e-6)


@pytest.mark.parametrize("noise", [0.03, 1.0])
@pytest.mark.parametrize("power", range(1, 9))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_r2_is_right_to_its_error_bound_whatever_the_condition(dtype, power, noise, randn):
    for _ in range(12):
        x, y = (rows.to(dtype) for rows in planted(randn, 600, 12, 10.0**power, noise))

        scores = fit_of(x, y).scores()

        assert abs(scores["r2"] - svd_r2(x, y)) <= max(1e-6, scores["error_bound"])


@pytest.mark.parametrize("power", range(1, 6))
def test_float64_rows_keep_r2_to_six_digits_up_to_a_condition_of_1e5(power, randn):
    x, y = planted(randn, 600, 12, 10.0**power, 1.0)

    scores = fit_of(x, y).scores()

    assert abs(scores["r2"] - svd_r2(x, y)) <= 1e-6
    assert scores["rank"] == 12
    assert scores["error_bound"] < 1e-3


def test_the_error_bound_is_small_for_well_conditioned_rows(residual_rows, randn):
    x = residual_rows(3000, 16)
    y = (x.double() @ randn(16, 3) + randn(3000, 3)).float()

    # A condition of 1 to 2 and float32 sums: gamma (1 + rho)^2 with rho of order sqrt(16).
    assert fit_of(x, y).score("error_bound") < 1e-4


def test_condition_is_that_of_the_equilibrated_scatter(residual_rows, randn):
    x = residual_rows(200, 7, torch.float64)
    x[:, 3] = x[:, 2] + 0.1 * x[:, 3]

    scale = (x - x.mean(0)).norm(dim=0)
    expected = torch.linalg.cond((x - x.mean(0)) / scale).square()

    assert fit_of(x, randn(200, 2)).score("condition") == pytest.approx(float(expected), rel=1e-8)


def test_the_scale_of_columns_does_not_matter(randn):
    x, y = randn(300, 6), randn(300, 2)
    scaled = x * torch.logspace(-10, 10, 6, dtype=torch.float64)

    plain, fit = fit_of(x, y).scores(), fit_of(scaled, y).scores()

    for column in ("r2", "r2_cv", "rank", "condition"):
        assert fit[column] == pytest.approx(plain[column], rel=1e-9), column


def test_a_larger_rcond_leaves_out_more_directions(randn):
    x, y = planted(randn, 600, 12, 1e4, 0.03)

    ranks = [fit_of(x, y, method=LeastSquares(rcond=r)).solve().rank for r in (0.0, 1e-6, 1e-2, 0.999)]

    assert ranks == sorted(ranks, reverse=True)
    assert ranks[0] == 12
    assert 1 <= ranks[-1] < ranks[1] < 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"alpha": -1.0}, "alpha: .* got -1.0"), ({"rcond": 1.0}, "rcond: .* got 1.0"), ({"rcond": -0.1}, "rcond")],
    ids=str,
)
def test_invalid_options_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        LeastSquares(**arguments)


@pytest.mark.parametrize("n", [0, 1])
def test_a_fit_needs_two_rows(n, randn):
    with pytest.raises(NumericalError, match=f"x: must have at least 2 tokens for a fit, got {n}"):
        fit_of(randn(n, 3), randn(n, 2)).solve()


def test_a_solution_equals_its_linear_module(randn):
    x, y = randn(60, 4), randn(60, 3)
    solution = fit_of(x, y).solve()

    linear = solution.to_linear(torch.float64)

    assert isinstance(solution, Solution)
    assert (linear.in_features, linear.out_features) == (4, 3)
    torch.testing.assert_close(linear(x), solution(x), rtol=1e-12, atol=1e-12)
    assert solution(x).shape == (60, 3)


def test_a_solution_keeps_the_dtype_and_leading_dimensions_of_its_input(randn):
    solution = fit_of(randn(60, 4), randn(60, 3)).solve()

    assert solution(torch.ones(2, 5, 4)).dtype == torch.float32
    assert solution(torch.ones(2, 5, 4)).shape == (2, 5, 3)
    assert solution.to_linear().weight.dtype == torch.float32
    torch.testing.assert_close(solution.to_linear()(torch.ones(4)), solution(torch.ones(4)))
