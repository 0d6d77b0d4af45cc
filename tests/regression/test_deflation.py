"""Deflated Cholesky factors: the ends of the spectrum, and the same fits as by eigenvectors."""

import pytest
import torch

from fastprobe.regression import deflation
from fastprobe.regression.deflation import deflations
from fastprobe.regression.least_squares import Factorisation, LeastSquares
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments
from fastprobe.regression.scores import COLUMNS, moment_columns
from fastprobe.regression.spectrum import Scatter, Spectrum
from tests.regression.test_least_squares import planted

WIDTH = 150


def layer_normed(x):
    return torch.nn.functional.layer_norm(x, (x.shape[1],)) * torch.linspace(0.5, 2, x.shape[1])


def dependent(x, number):
    """Return x with its last columns replaced by sums of others."""
    return torch.cat([x[:, :-number], x[:, :number] + x[:, number : 2 * number]], 1)


def with_constants(x):
    return torch.cat([x[:, :-30], torch.full((len(x), 30), 7.0, dtype=x.dtype)], 1)


SOURCES = {
    "full rank": lambda x, randn: x,
    "after a LayerNorm": lambda x, randn: layer_normed(x),
    "after a LayerNorm, float32": lambda x, randn: layer_normed(x).float(),
    "3 dependent columns": lambda x, randn: dependent(x, 3),
    "constant columns": lambda x, randn: with_constants(layer_normed(x)),
    "3 tokens more than columns": lambda x, randn: x[: WIDTH + 3],
    "too few tokens without a fold": lambda x, randn: x[: WIDTH + 30],
} | {f"condition 1e{p}": lambda x, randn, p=p: planted(randn, 600, WIDTH, 10.0**p, 0.1)[0] for p in (1, 2, 3, 4)}


@pytest.fixture(params=SOURCES)
def moments(request, residual_rows, randn):
    x = SOURCES[request.param](residual_rows(600, WIDTH, torch.float64), randn)
    y = torch.tanh(x.double() @ randn(WIDTH, WIDTH) / WIDTH**0.5) + x + 0.1 * randn(*x.shape)
    summed = Moments.zero(MomentPlan.of([("x", "y")], {"x": WIDTH, "y": WIDTH}, folds=3, cka=[("x", "y")]))
    summed.update_({"x": x, "y": y.to(x.dtype)}, torch.arange(len(x)) % 3)
    return summed


@pytest.mark.parametrize("alpha", [0.0, 5.0])
def test_fits_equal_those_by_eigenvectors(alpha, moments, monkeypatch):
    by_cholesky = Factorisation.of(moments, "x", LeastSquares(alpha=alpha))
    monkeypatch.setattr(deflation, "NARROW", WIDTH + 1)
    by_eigh = Factorisation.of(moments, "x", LeastSquares(alpha=alpha))

    assert (by_cholesky.whitening.method, by_eigh.whitening.method) == ("cholesky", "eigh")
    fit, expected = by_cholesky.fit("y"), by_eigh.fit("y")
    rounding = 1e-8 + 1e-15 * by_eigh.whitening.condition
    columns, others = moment_columns(by_cholesky, fit, "y"), moment_columns(by_eigh, expected, "y")
    for column in COLUMNS:
        if others[column] is not None:
            assert columns[column] == pytest.approx(others[column], rel=rounding, abs=1e-8), column
    size = float(expected.coef.abs().max())
    torch.testing.assert_close(fit.coef, expected.coef, rtol=0, atol=10 * rounding * size)
    P, Q = by_cholesky.whitening.matrix, by_eigh.whitening.matrix
    maps, other_maps = by_cholesky.fold_maps(fit), by_eigh.fold_maps(expected)
    for f, (W, intercept) in maps.items():
        size = float((Q @ other_maps[f][0]).abs().max())
        torch.testing.assert_close(P @ W, Q @ other_maps[f][0], rtol=0, atol=10 * rounding * size)
        torch.testing.assert_close(intercept, other_maps[f][1], rtol=1e-7, atol=1e-7)


def test_ends_of_the_spectrum_are_those_of_all_eigenvalues(moments):
    source = Scatter.of(moments, "x")
    rcond = 1e-7 if moments.dtype == "float32" else 1e-12

    (found,) = deflations([source], rcond)

    values = Spectrum.of(source).values
    kept = values[values > rcond * values[-1]]
    assert found.largest == pytest.approx(float(kept[-1]), rel=1e-9)
    assert found.smallest == pytest.approx(float(kept[0]), rel=1e-9, abs=1e-14 * found.largest)
    assert len(found.left_out) == len(values) - len(kept)
    R = source.equilibrated
    torch.testing.assert_close(R @ found.null, found.null * found.left_out, rtol=0, atol=1e-12 * found.largest)


def test_sources_deflated_together_have_the_ends_of_each_alone(residual_rows):
    rows = {"full": residual_rows(400, WIDTH), "normed": layer_normed(residual_rows(400, WIDTH))}
    rows |= {"many": residual_rows(400, 30) @ torch.ones(30, 1) * torch.ones(WIDTH), "y": residual_rows(400, 1)}
    plan = MomentPlan.of([(x, "y") for x in ("full", "normed", "many")], {n: r.shape[1] for n, r in rows.items()})
    moments = Moments.zero(plan)
    moments.update_(rows, torch.zeros(400, dtype=torch.int64))
    sources = [Scatter.of(moments, x) for x in ("full", "normed", "many")]

    both, three = deflations(sources[:2], 1e-7), deflations(sources, 1e-7)

    assert three[2] is None
    for source, together, again in zip(sources, both, three, strict=False):
        (alone,) = deflations([source], 1e-7)
        assert len(together.left_out) == len(again.left_out) == len(alone.left_out)
        for end in ("largest", "smallest"):
            assert getattr(together, end) == pytest.approx(getattr(alone, end), rel=1e-9)


@pytest.mark.parametrize("offset", [-1e-3, -1e-6, 0.0, 1e-6, 1e-3])
def test_an_eigenvalue_next_to_the_threshold_is_kept_or_left_out_as_by_eigh(offset, randn, monkeypatch):
    basis = torch.linalg.qr(randn(WIDTH, WIDTH))[0]
    values = torch.linspace(0.5, 1.5, WIDTH, dtype=torch.float64)
    values[0] = 1e-3
    S = basis * values @ basis.mT
    S /= torch.outer(S.diagonal().sqrt(), S.diagonal().sqrt())
    one = torch.ones(WIDTH, dtype=torch.float64)
    source = Scatter(0 * one, S, one, one, one.bool() & False, one.bool())
    exact = torch.linalg.eigvalsh(S)
    rcond = float(exact[0] / exact[-1]) * (1 + offset)

    (found,) = deflations([source], rcond)

    if found is None:
        assert abs(offset) <= 1e-6
    else:
        assert len(found.left_out) == int((exact <= rcond * exact[-1]).sum())


def test_more_directions_than_a_block_finds_are_left_to_eigh(residual_rows, randn):
    x = dependent(residual_rows(400, WIDTH, torch.float64), deflation.MOST + 1)
    moments = Moments.zero(MomentPlan.of([("x", "y")], {"x": WIDTH, "y": 2}))
    moments.update_({"x": x, "y": randn(400, 2)}, torch.zeros(400, dtype=torch.int64))

    source = Factorisation.of(moments, "x", LeastSquares())

    assert source.solution(source.fit("y")).factorisation == "eigh"
    assert source.whitening.rank == WIDTH - deflation.MOST - 1
