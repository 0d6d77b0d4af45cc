"""Every column of a row against its definition, computed from the rows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from fastprobe.regression.least_squares import Factorisation, LeastSquares
from fastprobe.regression.linear_fit import LinearFit
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments
from fastprobe.regression.scores import COLUMNS, current_column, moment_columns


def scores_of(x, y, **kwargs):
    return LinearFit(x.shape[1], y.shape[1], **kwargs).update(x, y).scores()


def predict(x, y, new, alpha=0.0):
    """Predict new rows by the ridge of y on x with an intercept; by the shortest map for rank-deficient x."""
    d = x.shape[1]
    left = torch.cat([x - x.mean(0), math.sqrt(alpha) * torch.eye(d, dtype=x.dtype)])
    right = torch.cat([y - y.mean(0), y.new_zeros(d, y.shape[1])])
    return y.mean(0) + (new - x.mean(0)) @ torch.linalg.pinv(left, rtol=1e-10) @ right


def r2_of(p, y):
    return 1 - float((y - p).square().sum() / (y - y.mean(0)).square().sum())


def cross_validated(x, y, folds, alpha=0.0):
    """Return r2_cv and its jackknife standard error, computed fold by fold from the rows."""
    fold = torch.arange(len(x)) % folds
    rss, tss = [], []
    for f in range(folds):
        rest, out = fold != f, fold == f
        rss.append(float((y[out] - predict(x[rest], y[rest], x[out], alpha)).square().sum()))
        tss.append(float((y[out] - y[rest].mean(0)).square().sum()))
    without = [1 - (sum(rss) - r) / (sum(tss) - t) for r, t in zip(rss, tss, strict=True)]
    mean = sum(without) / folds
    return 1 - sum(rss) / sum(tss), math.sqrt((folds - 1) / folds * sum((w - mean) ** 2 for w in without))


@pytest.fixture
def pair(residual_rows, randn):
    """Return rows x of width 6, and y = x + a linear map of x + noise."""
    x = residual_rows(240, 6, torch.float64)
    return x, x + 0.3 * (x - x.mean(0)) @ randn(6, 6) + randn(240, 6)


def test_an_affine_map_scores_one(residual_rows, randn):
    x = residual_rows(200, 7, torch.float64)
    y = x @ randn(7, 5) - 12

    scores = scores_of(x, y)

    for column in ("r2", "r2_adjusted", "r2_cv", "r2_uniform"):
        assert scores[column] == pytest.approx(1, abs=1e-10), column
    assert scores["nonlinearity"] == pytest.approx(0, abs=1e-10)
    assert scores["r2_cv_se"] == pytest.approx(0, abs=1e-10)


def test_noise_scores_by_chance_in_sample_and_below_zero_out_of_sample(randn):
    n, d, k = 2000, 400, 50
    scores = scores_of(randn(n, d), randn(n, k))

    # r2 of a column has the distribution beta(d / 2, (n - d - 1) / 2) with sd 0.009; the mean of 50 has sd 0.0013.
    assert scores["r2"] == pytest.approx(d / (n - 1), abs=0.006)
    assert scores["r2_adjusted"] == pytest.approx(0, abs=0.008)
    # A map fitted to noise adds d / (n_train - d - 1) times the variance of y.
    assert scores["r2_cv"] == pytest.approx(-d / (0.8 * n - d - 1), abs=0.02)


def test_noise_scores_about_zero_out_of_sample_with_many_rows(randn):
    scores = scores_of(randn(20_000, 10), randn(20_000, 10))

    assert abs(scores["r2_cv"]) < 2e-3  # -d / n = 5e-4, and as much again of chance
    assert abs(scores["r2_adjusted"]) < 2e-3


def test_r2_and_r2_uniform_equal_those_of_scikit_learn(pair):
    x, y = pair
    y[:, 2] *= 100

    scores = scores_of(x, y)

    p = LinearRegression().fit(x.numpy(), y.numpy()).predict(x.numpy())
    assert scores["r2"] == pytest.approx(r2_score(y.numpy(), p, multioutput="variance_weighted"), abs=1e-10)
    assert scores["r2_uniform"] == pytest.approx(r2_score(y.numpy(), p, multioutput="uniform_average"), abs=1e-10)
    adjusted = 1 - (1 - scores["r2"]) * (240 - 1) / (240 - 6 - 1)
    assert scores["r2_adjusted"] == pytest.approx(adjusted, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 30.0])
@pytest.mark.parametrize("folds", [2, 5, 7])
def test_r2_cv_and_its_standard_error_equal_those_of_explicit_folds(folds, alpha, pair):
    scores = scores_of(*pair, folds=folds, method=LeastSquares(alpha=alpha))

    r2_cv, se = cross_validated(*pair, folds, alpha)

    assert scores["r2_cv"] == pytest.approx(r2_cv, abs=1e-9)
    assert scores["r2_cv_se"] == pytest.approx(se, abs=1e-9)
    assert scores["nonlinearity"] == 1 - scores["r2_cv"]


@given(st.integers(6, 60), st.integers(1, 5), st.integers(1, 4), st.integers(2, 6), st.integers(0, 99))
def test_r2_cv_equals_that_of_explicit_folds_for_any_shape(n, d, k, folds, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n + 3 * d, w, generator=generator, dtype=torch.float64) for w in (d, k))
    y[:, 0] += x.sum(1)

    r2_cv, se = cross_validated(x, y, folds)
    scores = scores_of(x, y, folds=folds)

    assert scores["r2_cv"] == pytest.approx(r2_cv, rel=1e-8, abs=1e-9)
    assert scores["r2_cv_se"] == pytest.approx(se, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("folds", [0, 1])
def test_without_folds_there_is_no_r2_cv(folds, pair):
    scores = scores_of(*pair, folds=folds)

    assert [scores[c] for c in ("r2_cv", "r2_cv_se", "nonlinearity")] == [None] * 3
    assert scores["r2"] == pytest.approx(scores_of(*pair)["r2"], abs=1e-12)


@pytest.mark.parametrize("folds", [5, 9])
def test_folds_without_rows_do_not_count(folds, pair):
    x, y = (rows[:3] for rows in pair)
    x = x[:, :1]

    scores = scores_of(x, y, folds=folds)

    assert scores["r2_cv"] == pytest.approx(cross_validated(x, y, 3)[0], abs=1e-9)


def test_fewer_rows_than_columns_give_no_r2_adjusted_and_a_finite_r2_cv(randn):
    x = randn(30, 50)
    y = x[:, :4] + 0.1 * randn(30, 4)

    scores = scores_of(x, y)

    assert scores["r2"] == pytest.approx(1, abs=1e-9)
    assert scores["r2_adjusted"] is None
    assert math.isfinite(scores["r2_cv"])
    assert math.isfinite(scores["r2_cv_se"])
    assert scores["note"] == "cannot be said with 30 tokens; at least 250 would do"


def test_with_fewer_rows_than_columns_each_fold_is_predicted_by_the_fit_on_the_others(randn):
    x = randn(40, 50)
    y = x[:, :4] + 0.1 * randn(40, 4)
    fold, rss, tss = torch.arange(40) % 5, 0.0, 0.0
    for f in range(5):
        rest, out = fold != f, fold == f
        p = LinearFit(50, 4).update(x[rest], y[rest]).solve()(x[out])
        rss += float((y[out] - p).square().sum())
        tss += float((y[out] - y[rest].mean(0)).square().sum())

    # The fits differ in the scale of the columns only. A score of 0 would be no prediction at all.
    assert scores_of(x, y)["r2_cv"] == pytest.approx(1 - rss / tss, abs=0.1)


def test_a_column_that_varies_in_one_fold_only_is_left_out_of_the_fit_without_that_fold(randn):
    x, y = randn(300, 4), randn(300, 2)
    y += x[:, :2]
    x[:, 3] = 0
    x[::5, 3] = randn(60)  # fold 0 of 5

    scores = scores_of(x, y)

    assert scores["rank"] == 4
    # The coefficient left open changes the score of one fold of five, by a chance correlation over 60 rows.
    assert scores["r2_cv"] == pytest.approx(cross_validated(x, y, 5)[0], abs=2 / 60)


def test_a_fold_with_all_the_variance_gives_no_standard_error_and_no_nan(randn):
    x, y = randn(40, 2), torch.zeros(40, 1, dtype=torch.float64)
    y[1::2] = torch.tensor([1.0, -1.0]).double().repeat(10)[:, None]

    scores = scores_of(x, y, folds=2)

    assert all(scores[column] is None or math.isfinite(scores[column]) for column in COLUMNS)


@pytest.mark.parametrize("mean", [0, 1000])
def test_r2_residual_is_the_r2_of_y_minus_x(mean, pair):
    x, y = pair
    y = y + mean

    expected = r2_of(predict(x, y - x, x), y - x)

    assert scores_of(x, y)["r2_residual"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("mean", [0, 1000])
def test_r2_identity_is_the_r2_of_predicting_x(mean, pair):
    x, y = pair
    y = y + mean

    assert scores_of(x, y)["r2_identity"] == pytest.approx(r2_of(x, y), rel=1e-9)


@pytest.mark.parametrize("column", ["r2", "r2_residual", "r2_identity", "cka"])
def test_scores_are_right_if_later_rows_have_another_mean_than_the_first(column, pair):
    x, y = pair
    order = y[:, 1].argsort()  # sums are about the mean of the first batch, far from that of all
    x, y = x[order], y[order] + 50

    fit = LinearFit(6, 6).update(x[:40], y[:40]).update(x[40:], y[40:])

    expected = {
        "r2": r2_of(predict(x, y, x), y),
        "r2_residual": r2_of(predict(x, y - x, x), y - x),
        "r2_identity": r2_of(x, y),
        "cka": linear_cka(x, y),
    }
    assert fit.score(column) == pytest.approx(expected[column], rel=1e-9)


def test_only_maps_between_equal_widths_have_r2_residual_and_r2_identity(pair):
    x, y = pair

    scores = scores_of(x, y[:, :4])

    assert scores["r2_residual"] is None
    assert scores["r2_identity"] is None


def test_anisotropy_is_the_mean_cosine_of_two_different_rows(pair):
    y = pair[1]
    y[4] = 0  # a zero row has no direction and does not count

    units = torch.nn.functional.normalize(torch.cat([y[:4], y[5:]]))
    cosines = units @ units.mT
    expected = (cosines.sum() - cosines.trace()) / (239 * 238)

    assert scores_of(*pair)["anisotropy"] == pytest.approx(float(expected), abs=1e-10)


def linear_cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x.mT @ y).norm() ** 2 / ((x.mT @ x).norm() * (y.mT @ y).norm()))


@pytest.mark.parametrize("mean", [0, 1000])
def test_cka_is_linear_cka(mean, pair):
    x, y = pair

    assert scores_of(x, y + mean)["cka"] == pytest.approx(linear_cka(x, y), abs=1e-9)


def test_r2_equals_the_linearity_score_of_llm_microscope(randn):
    x = randn(500, 20)
    y = torch.tanh(x @ randn(20, 20) / 3) + x

    # Its algorithm: centre, divide by Frobenius norms, 1 - min |XA - Y|^2 by a singular value decomposition of X.
    a, b = x - x.mean(0), y - y.mean(0)
    a, b = a / a.norm(), b / b.norm()
    u, s, v = torch.linalg.svd(a, full_matrices=False)
    expected = 1 - (a @ (v.mT * (1 / s) @ u.mT @ b) - b).square().sum()

    assert scores_of(x, y)["r2"] == pytest.approx(float(expected), abs=1e-10)


def test_constant_columns_of_y_change_no_r2(pair):
    x, y = pair
    wider = torch.cat([y, torch.full((240, 3), 1000.3, dtype=torch.float64)], dim=1)

    plain, scores = scores_of(x, y), scores_of(x, wider)

    for column in ("r2", "r2_uniform", "r2_cv"):
        assert scores[column] == pytest.approx(plain[column], abs=1e-9), column


@pytest.mark.parametrize("n", [7, 100, 1500, 5000])
@pytest.mark.parametrize("value", [0.0, 0.1, 1000.3, 1 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_constant_target_has_no_score(dtype, value, n, randn):
    scores = scores_of(randn(n, 3, dtype=dtype), torch.full((n, 3), value).to(dtype))

    for column in ("nonlinearity", "r2", "r2_adjusted", "r2_cv", "r2_cv_se", "r2_uniform", "r2_identity", "cka"):
        assert scores[column] is None, column


@pytest.mark.parametrize("shift", [0.0, 0.1, 1000.0])
def test_x_plus_a_constant_has_no_r2_residual(shift, randn):
    x = (randn(300, 4) * 1024).round() / 1024 * 1024  # x + shift is exact

    scores = scores_of(x, x + round(shift * 1024) / 1024)

    assert scores["r2"] == pytest.approx(1, abs=1e-10)
    assert scores["r2_residual"] is None


def test_a_fit_from_the_sums_of_parts_equals_the_fit_on_their_sum(pair):
    x, y = pair
    widths = {"x": 6, "o": 6, "y": 6}
    plan = MomentPlan.of([("x", "y")], widths, folds=5, parts={"y": ("x", "o")}, cka=[("x", "y")])
    moments = Moments.zero(plan)
    moments.update_({"x": x, "o": y - x, "y": y}, torch.arange(240) % 5)

    source = Factorisation.of(moments, "x", LeastSquares())
    scores = moment_columns(source, source.fit("y"), "y")

    expected = scores_of(x, y)
    for column in COLUMNS:
        bound = {"abs": 1.0} if column == "error_bound" else {"rel": 1e-8, "abs": 1e-9}
        assert (scores[column] is None) == (expected[column] is None), column
        assert scores[column] is None or scores[column] == pytest.approx(expected[column], **bound), column


def test_without_the_gram_of_y_there_is_no_cka(pair):
    x, y = pair
    moments = Moments.zero(MomentPlan.of([("x", "y")], {"x": 6, "y": 6}, folds=5))
    moments.update_({"x": x, "y": y}, torch.arange(240) % 5)
    source = Factorisation.of(moments, "x", LeastSquares())

    assert moment_columns(source, source.fit("y"), "y")["cka"] is None


def test_a_row_with_a_large_error_bound_has_a_note(randn):
    x = randn(300, 3)
    x[:, 2] = x[:, 1] + 1e-3 * x[:, 2]
    y = ((x[:, 2:] - x[:, 1:2]) * 1e3).float()

    scores = scores_of(x.float(), y)

    assert scores["error_bound"] > 1e-3
    assert "error bound" in scores["note"]
    assert scores_of(x, y.double())["note"] == ""


@given(st.integers(0, 99), st.floats(0.01, 100), st.floats(-100, 100))
def test_scores_are_invariant_to_scaling_of_y_and_invertible_maps_of_x(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    x, y, mix = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((80, 4), (80, 3), (4, 4)))
    y += x[:, :3].sin()
    mix += 4 * torch.eye(4)

    plain, moved = scores_of(x, y), scores_of(x @ mix + shift, scale * y - shift)

    for column in ("r2", "r2_cv", "r2_cv_se", "r2_adjusted", "r2_uniform"):
        assert moved[column] == pytest.approx(plain[column], abs=1e-8), column


def test_old_column_names_give_the_new_ones_with_a_warning(pair):
    fit = LinearFit(6, 6).update(*pair)

    with pytest.warns(DeprecationWarning, match="column 'cone' is now 'anisotropy'") as warned:
        assert fit.score("cone") == fit.scores()["anisotropy"]

    assert warned[0].filename == __file__
    assert current_column("r2") == "r2"
    assert "cone" not in fit.scores()
