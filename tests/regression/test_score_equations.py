"""Each score function equals its equation on small numbers, and is None where the score does not exist."""

import pytest
import torch

from fastprobe.regression.scores import (
    anisotropy,
    cka,
    nonlinearity,
    r2_adjusted,
    r2_cv,
    r2_cv_se,
    r2_identity,
    r2_residual,
    r2_score,
    r2_uniform,
)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_each_score_is_its_equation():
    rss, tss = numbers(1, 2, 0), numbers(4, 4, 0)
    S_xx, S_xy, S_yy = torch.eye(3).double(), torch.diag(numbers(1, 2, 0)), torch.diag(numbers(4, 4, 0))

    assert r2_score(rss, tss) == pytest.approx(1 - 3 / 8)
    assert r2_adjusted(0.5, n=11, r=4) == pytest.approx(1 - 0.5 * 10 / 6)
    assert r2_cv(numbers(1, 3), numbers(4, 4)) == pytest.approx(1 - 4 / 8)
    # θ = (1/4, 3/4), so se = ((1/2) (1/16 + 1/16))^1/2
    assert r2_cv_se(numbers(1, 3), numbers(4, 4)) == pytest.approx(0.25)
    assert nonlinearity(0.75) == 0.25
    assert r2_uniform(rss, tss) == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert r2_residual(rss, tss) == pytest.approx(1 - 3 / 8)
    # Σ |y - x|^2 = 8 + 3 - 2 * 3 + 10 * |(1, 0, 0)|^2
    assert r2_identity(S_xx, S_xy, tss, 10, numbers(0, 0, 0), numbers(1, 0, 0)) == pytest.approx(1 - 15 / 8)
    assert anisotropy(numbers(2, 2), m=3) == pytest.approx((8 - 3) / 6)
    assert cka(S_xx, S_xy, S_yy) == pytest.approx(5 / (3**0.5 * 32**0.5))


def test_scores_that_do_not_exist_are_none():
    nothing, one = numbers(0, 0), numbers(1, 1)

    assert r2_score(nothing, nothing) is None
    assert r2_adjusted(0.5, n=5, r=4) is None
    assert r2_adjusted(None, n=50, r=4) is None
    assert r2_cv(one[:1], one[:1]) is None
    assert r2_cv(nothing, nothing) is None
    assert r2_cv_se(one[:1], one[:1]) is None
    assert r2_cv_se(numbers(1, 0), numbers(1, 0)) is None
    assert nonlinearity(None) is None
    assert r2_uniform(nothing, nothing) is None
    assert r2_residual(nothing, nothing) is None
    assert anisotropy(one, m=1) is None
    assert cka(torch.zeros(2, 2), torch.zeros(2, 2), torch.eye(2)) is None
