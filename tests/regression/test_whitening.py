"""Whitened coordinates: their scatter is the identity, and the ridge penalty in them is diagonal."""

import pytest
import torch

from fastprobe.regression import deflation
from fastprobe.regression.deflation import deflations
from fastprobe.regression.spectrum import Scatter, Spectrum
from fastprobe.regression.whitening import Whitening


@pytest.fixture
def x(residual_rows):
    """Return rows of rank 9 in 12 columns: one direction and two columns are constant."""
    rows = torch.nn.functional.layer_norm(residual_rows(300, 12, torch.float64), (12,))
    rows *= torch.linspace(0.2, 5, 12, dtype=torch.float64)
    rows[:, 3:5] = 7.0
    return torch.cat([rows[:, :11], rows[:, 8:9] + rows[:, 9:10]], 1)


@pytest.fixture(params=["eigh", "cholesky"])
def whitening_of(request, monkeypatch):
    """Return the function that whitens rows by an eigendecomposition or by Cholesky factors."""
    monkeypatch.setattr(deflation, "NARROW", 0)

    def whitened(x, alpha=0.0):
        centred = x - x.mean(0)
        S = centred.mT @ centred
        varies = S.diagonal() > 1e-9
        scale = torch.where(varies, S.diagonal(), torch.ones(len(S), dtype=S.dtype)).sqrt()
        source = Scatter(x.mean(0), S, x.norm(dim=0), scale, torch.zeros(len(S), dtype=torch.bool), varies)
        found = Spectrum.of(source) if request.param == "eigh" else deflations([source], 1e-10)[0]
        return Whitening.of(source, found, alpha=alpha, rcond=1e-10, gamma=1e-14)

    return whitened


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_the_scatter_of_whitened_rows_is_the_identity_of_the_kept_space(alpha, x, whitening_of):
    whitening = whitening_of(x, alpha)

    z = (x - x.mean(0)) @ whitening.matrix

    assert whitening.rank == torch.linalg.matrix_rank(x - x.mean(0), rtol=1e-8)
    values = torch.linalg.eigvalsh(z.mT @ z)
    expected = torch.ones_like(values)
    expected[: len(values) - whitening.rank] = 0
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(whitening.coordinates((x - x.mean(0)).mT.clone()).mT, z)
    torch.testing.assert_close(whitening.map(z.mT.clone()), whitening.matrix @ z.mT)


def test_the_penalty_is_that_of_the_shortest_map_with_the_same_predictions(x, randn, whitening_of):
    whitening = whitening_of(x, alpha=3.0)
    W = randn(whitening.rank, 4)

    shortest = torch.linalg.pinv(x - x.mean(0), rtol=1e-8) @ ((x - x.mean(0)) @ whitening.matrix @ W)

    penalty = (whitening.ridge[:, None] * W.square()).sum()
    assert float(penalty) == pytest.approx(3.0 * float(shortest.square().sum()), rel=1e-8)


def test_another_ridge_has_the_same_coordinates(x, whitening_of):
    first, other = whitening_of(x, alpha=3.0), whitening_of(x, alpha=12.0)

    changed = first.with_alpha(12.0)

    assert torch.equal(changed.matrix, first.matrix)
    torch.testing.assert_close(changed.ridge, other.ridge)
    assert changed.alpha == 12.0


def test_condition_is_the_ratio_of_the_kept_eigenvalues(x, whitening_of):
    whitening = whitening_of(x)

    kept = Spectrum.of(whitening.source).values[-whitening.rank :]
    assert whitening.condition == pytest.approx(float(kept.max() / kept.min()), rel=1e-9)


def test_a_constant_source_has_rank_0_and_condition_1():
    x = torch.ones(5, 3, dtype=torch.float64)
    source = Scatter(x.mean(0), 0 * x[:3], x.norm(dim=0), x[0], torch.zeros(3).bool(), torch.zeros(3).bool())

    whitening = Whitening.of(source, Spectrum.of(source), alpha=0.0, rcond=1e-10, gamma=1e-14)

    assert (whitening.rank, whitening.condition) == (0, 1.0)
