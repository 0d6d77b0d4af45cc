"""Scores do not depend on units or on a common shift, and columns count as constant by the precision of the rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastprobe.errors import NumericalError
from fastprobe.regression.least_squares import LeastSquares
from fastprobe.regression.linear_fit import LinearFit
from fastprobe.regression.scores import COLUMNS, cka
from tests.regression.test_least_squares import fit_of, svd_r2

UNITS = st.floats(-30, 30).map(lambda power: 10.0**power)
AFFINE = ("r2_identity", "anisotropy")
"""Columns that depend on the means by definition."""


def rows(seed, n=120, d=5):
    """Return x and y of one width, where y depends on x and on noise, and x has a column of rank 0 and a large mean."""
    generator = torch.Generator().manual_seed(seed)
    x, y, noise = (torch.randn(n, d, generator=generator, dtype=torch.float64) for _ in range(3))
    x[:, 1] += 30
    x[:, 2] = 1 / 3
    return x, x.sin() + 0.3 * y + 0.1 * noise


def assert_equal_scores(found, expected, tolerance, without=()):
    for column in COLUMNS:
        if column in without:
            continue
        assert (found[column] is None) == (expected[column] is None), column
        if column == "error_bound":
            assert found[column] < 1e-9
        elif expected[column] is not None:
            assert found[column] == pytest.approx(expected[column], rel=tolerance, abs=tolerance), column


@given(st.integers(0, 99), UNITS, UNITS)
def test_no_score_depends_on_the_units_of_float64_rows(seed, a, b):
    x, y = rows(seed)

    # A prediction of y by x itself, and y - x, need one unit for both.
    assert_equal_scores(
        fit_of(a * x, b * y).scores(), fit_of(x, y).scores(), 1e-9, without=("r2_identity", "r2_residual")
    )
    assert_equal_scores(fit_of(a * x, a * y).scores(), fit_of(x, y).scores(), 1e-9)


@given(st.integers(0, 99), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_no_score_depends_on_a_shift_of_float64_rows(seed, c, e):
    x, y = rows(seed)

    assert_equal_scores(fit_of(x + c, y + e).scores(), fit_of(x, y).scores(), 1e-7, without=AFFINE)


@given(st.integers(0, 99), st.integers(-80, 80), st.integers(-80, 80))
def test_powers_of_two_change_no_digit_of_cka(seed, a, b):
    x, y = (part - part.mean(0) for part in rows(seed))
    S_xx, S_xy, S_yy = x.mT @ x, x.mT @ y, y.mT @ y
    a, b = 2.0 ** (6 * a), 2.0 ** (6 * b)  # to 1e-144 and 1e144

    assert cka(S_xx * a * a, S_xy * a * b, S_yy * b * b) == cka(S_xx, S_xy, S_yy)


@given(st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99), st.floats(-38, 30), st.floats(-38, 30))
def test_scores_of_float32_rows_in_any_unit_are_right_or_marked_or_refused(dtype, seed, a, b):
    x, y = ((part * 10.0**power).to(dtype) for part, power in zip(rows(seed), (a, b), strict=True))
    exact = fit_of(x, y, exact=True).scores()

    try:
        scores = fit_of(x, y).scores()
    except NumericalError:
        return

    assert scores["r2"] is None or abs(scores["r2"] - exact["r2"]) <= 1e-5 + scores["error_bound"]
    assert scores["r2"] is not None or scores["error_bound"] == 1
    assert scores["cka"] is None or scores["cka"] == pytest.approx(exact["cka"], abs=1e-4) or scores["note"]


@pytest.mark.parametrize(("a", "b"), [(5e18, 1), (1, 5e18), (5e18, 5e18), (1e25, 1)])
def test_float32_rows_whose_products_overflow_are_refused_or_right(a, b, randn):
    x, y = randn(3000, 4, dtype=torch.float32), randn(3000, 4, dtype=torch.float32)
    right = pytest.approx(fit_of(x, y).score("r2"), abs=1e-5)

    try:
        scores = fit_of(a * x, b * y).scores()
    except NumericalError as error:
        refusal = str(error)
    else:
        refusal = "" if scores["r2"] == right else "silent"

    assert refusal == "" or "overflow float32" in refusal or "too large for torch.float32" in refusal
    assert fit_of(a * x, b * y, exact=True).score("r2") == right


@given(
    st.sampled_from([torch.float32, torch.float64]),
    st.floats(0, 14),
    st.integers(0, 99),
    st.booleans(),
)
def test_r2_is_right_to_its_bound_whatever_the_mean_of_a_column(dtype, power, seed, of_x):
    """A column of mean 10^power and spread 1 explains half of y, or is half of y."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(400, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    y[:, :2] += 2 * x[:, :1]
    (x if of_x else y)[:, 0] += 10.0**power
    x, y = x.to(dtype), y.to(dtype)

    scores = fit_of(x, y).scores()

    assert abs(scores["r2"] - svd_r2(x, y, rcond=0)) <= 1e-6 + scores["error_bound"]
    if 10.0**power < 0.1 / (2e-7 if dtype == torch.float32 else 4e-16):
        assert scores["error_bound"] < 1e-4


def test_a_float64_column_of_mean_2e6_and_spread_1_is_kept(randn):
    x = randn(500, 4)
    y = x[:, :1] + x[:, 1:2] + 0.8 * randn(500, 1)
    x[:, 0] += 2e6

    scores = fit_of(x, y).scores()

    assert scores["rank"] == 4
    assert scores["r2"] == pytest.approx(svd_r2(x, y, rcond=0), abs=1e-9)


def test_a_column_left_out_counts_in_the_bound_and_in_the_note(randn):
    """Two units in the last place are lost in the rounding errors of the rows, and so is what they explain."""
    x, y = randn(300, 3, dtype=torch.float32), randn(300, 1, dtype=torch.float32)
    x[:, 2] = torch.where(y[:, 0] > 0, 1.0, 1.0 + 2.0**-23)

    scores = fit_of(x, y).scores()

    assert scores["rank"] == 2
    assert svd_r2(x, y, rcond=0) - scores["r2"] > 0.5
    assert scores["error_bound"] >= 1 - scores["r2"] - 1e-12
    assert "1 columns of x vary too little to be told from constant ones" in scores["note"]


def test_a_target_that_varies_by_its_rounding_errors_has_no_score_and_a_note(randn):
    x = randn(300, 3, dtype=torch.float32)
    y = torch.where(x[:, :1] > 0, 1.0, 1.0 + 2.0**-23)

    scores = fit_of(x, y).scores()

    assert scores["r2"] is None
    assert scores["error_bound"] == 1
    assert "the sums cannot tell this r2" in scores["note"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [0.0, 0.1, 1000.3, 1 / 3, -1e20])
@pytest.mark.parametrize("n", [40, 1500])
def test_constant_columns_are_constant_and_count_in_no_bound(n, value, dtype, randn):
    x, y = randn(n, 4, dtype=dtype), randn(n, 2, dtype=dtype)
    if dtype != torch.float64 and abs(value) > 1e18:
        return
    x[:, 1], y[:, 1] = value, value
    fit = LinearFit(4, 2)
    for start in range(0, n, 700):
        fit.update(x[start : start + 700], y[start : start + 700])

    scores = fit.scores()

    assert scores["rank"] == 3
    assert scores["error_bound"] < 1e-4
    assert "constant" not in scores["note"]
    assert "error bound" not in scores["note"]


@pytest.mark.parametrize("constant", ["x", "y"])
def test_without_variance_there_is_no_cka(constant, randn):
    blocks = {"x": randn(200, 3), "y": randn(200, 3)} | {constant: torch.full((200, 3), 1 / 3, dtype=torch.float64)}

    assert fit_of(blocks["x"], blocks["y"]).scores()["cka"] is None


def test_cka_is_none_where_the_products_of_y_underflow(randn):
    x = randn(300, 4, dtype=torch.float32)
    y = x + randn(300, 4, dtype=torch.float32)

    scores = fit_of(x, 1e-23 * y).scores()

    assert scores["cka"] is None
    assert scores["r2"] == pytest.approx(fit_of(x, y).score("r2"), abs=1e-5)
    assert fit_of(x, 1e-23 * y, exact=True).scores()["cka"] == pytest.approx(fit_of(x, y).score("cka"), abs=1e-5)


def test_a_ridge_counts_a_column_left_out_too(randn):
    x, y = randn(300, 2, dtype=torch.float32), randn(300, 1, dtype=torch.float32)
    x[:, 1] = torch.where(y[:, 0] > 0, 1.0, 1.0 + 2.0**-23)

    fit = fit_of(x, y, method=LeastSquares(alpha=1e-12))

    assert fit.score("error_bound") >= 1 - fit.score("r2") - 1e-12


@pytest.mark.parametrize(("n", "marked"), [(3, True), (6, True), (24, True), (25, False)])
def test_rows_of_few_tokens_are_marked(n, marked, randn):
    """Five columns need 25 tokens. y is x, so that no score is out of range."""
    x = randn(n, 5)

    note = fit_of(x, x[:, :2]).scores()["note"]

    assert ("at least 25 would do" in note) == marked
