"""The error bound holds for sources of every spectrum, also where directions are left out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastprobe.regression.linear_fit import LinearFit
from tests.regression.test_least_squares import fit_of, planted, svd_r2


@pytest.mark.parametrize("power", [4, 5, 6, 7, 8])
def test_no_float32_source_breaks_its_bound_whatever_the_condition(power, randn):
    """Check sources of condition 1e7 and 1e8, where a gap in the spectrum may hide directions that explain y."""
    broken = []
    for _ in range(100):
        x, y = (rows.float() for rows in planted(randn, 300, 12, 10.0**power, 0.03))
        scores = fit_of(x, y, folds=0).scores()
        if abs(scores["r2"] - svd_r2(x, y)) > max(1e-6, scores["error_bound"]):
            broken.append((scores["r2"], svd_r2(x, y), scores["error_bound"]))

    assert broken == []


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, -5), (torch.float64, -8)], ids=str)
@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=9),
    st.floats(0.03, 1),
    st.integers(0, 999),
)
def test_the_bound_holds_for_any_singular_values(dtype, least, powers, noise, seed):
    """Singular values down to 1e-5 or 1e-8: sums cannot see much smaller ones beside those of 1."""
    generator = torch.Generator().manual_seed(seed)
    d, n = len(powers), 400

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    basis, rotation = torch.linalg.qr(randn(n, d))[0], torch.linalg.qr(randn(d, d))[0]
    values = 10 ** (least * torch.tensor(powers, dtype=torch.float64))
    x = (math.sqrt(n) * basis * values @ rotation).to(dtype)
    y = (math.sqrt(n) * basis @ randn(d, 3) + noise * randn(n, 3)).to(dtype)

    fit = LinearFit(d, 3, folds=0).update(x, y)
    before = fit.scores()
    after = fit.refine([(x, y)], bound=0).scores()

    exact = svd_r2(x, y, rcond=0)
    assert abs(before["r2"] - exact) <= 1e-6 + before["error_bound"]
    assert abs(after["r2"] - exact) <= 1e-6 + after["error_bound"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_direction_that_a_layer_norm_makes_constant_counts_in_no_bound(dtype, residual_rows, randn):
    x = torch.nn.functional.layer_norm(residual_rows(2000, 32, torch.float64), (32,))
    x *= torch.linspace(0.5, 2, 32)
    y = torch.tanh(x @ randn(32, 32)) + 0.1 * randn(2000, 32)

    scores = fit_of(x.to(dtype), y.to(dtype)).scores()

    assert scores["error_bound"] < 1e-3 or dtype == torch.bfloat16  # rounding to 16 bits makes the direction vary


def test_a_left_out_direction_that_explains_y_counts_in_the_bound(randn):
    """Two nearly equal columns whose difference is y."""
    x = randn(2000, 6)
    difference = randn(2000)
    x[:, 5] = x[:, 4] + 1e-5 * difference
    y = torch.stack([difference, x[:, 0]], 1).float()
    x = x.float()

    scores = fit_of(x, y).scores()

    assert scores["rank"] == 5
    assert svd_r2(x, y) - scores["r2"] > 0.4
    assert scores["error_bound"] > 0.4
