"""Refinement gives more digits, and a bound on the error that remains."""

import pytest
import torch
from sklearn.linear_model import Ridge

from fastprobe import linearity
from fastprobe.errors import InputError
from fastprobe.regression.least_squares import LeastSquares
from fastprobe.regression.linear_fit import LinearFit
from fastprobe.testing.tiny_models import tiny_batches, tiny_model
from tests.regression.test_least_squares import fit_of, planted, svd_r2


def ill_conditioned(randn, dtype, condition=1e3, n=4000):
    x, y = planted(randn, n, 24, condition, 1.0)
    return (x + randn(24)).to(dtype), (y + 50).to(dtype)


@pytest.mark.parametrize("condition", [1e1, 1e2, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_error_of_a_refined_r2_is_within_its_bound(dtype, condition, randn):
    x, y = ill_conditioned(randn, dtype, condition)
    fit = fit_of(x, y)
    before = fit.score("error_bound")

    fit.refine([(x, y)], bound=0)

    assert abs(fit.score("r2") - svd_r2(x, y)) <= fit.score("error_bound") + 1e-14
    assert fit.score("error_bound") < before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_gain_digits(dtype, randn):
    x, y = ill_conditioned(randn, dtype)
    fit = fit_of(x, y)
    exact = fit_of(x.double(), y.double()).scores()
    before = {column: abs(fit.score(column) - exact[column]) for column in ("r2", "r2_uniform", "r2_cv")}
    assert fit.score("error_bound") > 1e-3

    fit.refine([(x, y)])

    after = {column: abs(fit.score(column) - exact[column]) for column in before}
    assert fit.score("error_bound") < 1e-3
    assert after["r2"] < 1e-6
    assert after["r2_uniform"] < 1e-6
    assert after["r2_cv"] < 1e-6
    for column in before:
        assert after[column] < before[column] / 3, column


@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_the_map_gains_digits(alpha, randn):
    x, y = ill_conditioned(randn, torch.float32, 300)
    exact = Ridge(alpha, solver="svd").fit(x.double().numpy(), y.double().numpy())
    fit = fit_of(x, y, method=LeastSquares(alpha=alpha))

    def off() -> float:
        p = x.double() @ fit.solve().coef + fit.solve().intercept
        return float((p - torch.from_numpy(exact.predict(x.double().numpy()))).norm())

    before = off()
    fit.refine([(x, y)], bound=0)
    assert off() < before / 10


def test_the_batches_of_the_second_pass_do_not_matter(randn):
    x, y = (rows.reshape(100, 40, -1) for rows in ill_conditioned(randn, torch.float32))
    mask = torch.arange(40) < torch.arange(100)[:, None] % 40 + 1
    x[~mask] = torch.nan
    whole = LinearFit(24, 5).update(x, y, mask)
    parts = LinearFit(24, 5).update(x, y, mask)

    whole.refine([(x, y, mask)])
    parts.refine((x[i : i + 30], y[i : i + 30], mask[i : i + 30]) for i in range(0, 100, 30))

    assert whole.score("r2_cv") == pytest.approx(parts.score("r2_cv"), abs=1e-9)
    assert whole.score("r2") == pytest.approx(svd_r2(x[mask], y[mask]), abs=1e-6)


def test_a_fit_with_a_small_bound_needs_no_second_pass(randn):
    x, y = randn(500, 4), randn(500, 2)
    fit = fit_of(x, y)
    before = fit.scores()

    def rows():
        raise AssertionError
        yield

    assert fit.refine(rows()).scores() == before


def test_a_wrong_number_of_rows_is_refused_and_scores_stay(randn):
    x, y = ill_conditioned(randn, torch.float32)
    fit = fit_of(x, y)
    before = fit.scores()

    with pytest.raises(InputError, match="refine: rows must be the 4000 rows of the fit, got 3000"):
        fit.refine([(x[:3000], y[:3000])])

    assert fit.scores() == before


def test_adding_rows_ends_the_refinement(randn):
    x, y = ill_conditioned(randn, torch.float32)
    fit = fit_of(x[:3000], y[:3000]).refine([(x[:3000], y[:3000])])

    fit.update(x[3000:], y[3000:])

    assert fit.score("error_bound") == pytest.approx(fit_of(x, y).score("error_bound"), rel=0.05)


def test_a_scan_of_all_sequences_refines_the_rows_that_need_it(randn):
    model, batches = tiny_model("gpt2"), tiny_batches(sequences=48, batch_size=16)
    plane = randn(4, 32)  # that the input of the first layer nearly lies in
    for embedding in (model.transformer.wte, model.transformer.wpe):
        rows = len(embedding.weight)
        embedding.weight.data = (randn(rows, 4) @ plane + 8e-3 * randn(rows, 32)).float()
    scan = {"elements": ["layer", "ffn"], "progress": False}
    sampled, refined = (linearity(model, batches, score_sequences=some, **scan).rows for some in (8, "all"))
    exact = linearity(model.double(), batches, **scan).rows

    marked = [row["error_bound"] > 1e-3 for row in sampled]
    assert 0 < sum(marked) < len(marked)
    for row, before, right, mark in zip(refined, sampled, exact, marked, strict=True):
        assert (row["error_bound"] < 1e-3 < before["error_bound"]) == mark
        assert (row["note"] == "") == (row["error_bound"] < 1e-3)
        assert abs(row["r2"] - right["r2"]) <= 1e-6
        assert abs(row["r2_cv"] - right["r2_cv"]) <= 1e-6
        assert row["cosine"] is not None
