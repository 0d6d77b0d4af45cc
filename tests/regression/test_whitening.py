"""Whitened coordinates: their scatter is the identity, and the ridge penalty in them is diagonal."""

import pytest
import torch

from fastprobe.regression.spectrum import Spectrum
from fastprobe.regression.whitening import Whitening


@pytest.fixture
def x(residual_rows):
    """Return rows of rank 9 in 12 columns: one direction and two columns are constant."""
    rows = torch.nn.functional.layer_norm(residual_rows(300, 12, torch.float64), (12,))
    rows *= torch.linspace(0.2, 5, 12, dtype=torch.float64)
    rows[:, 3:5] = 7.0
    return torch.cat([rows[:, :11], rows[:, 8:9] + rows[:, 9:10]], 1)


def whitening_of(x, alpha=0.0):
    centred = x - x.mean(0)
    S = centred.mT @ centred
    scale = torch.where(S.diagonal() > 1e-9, S.diagonal(), torch.ones(len(S), dtype=S.dtype)).sqrt()
    values, vectors = torch.linalg.eigh(S / scale / scale[:, None])
    spectrum = Spectrum(x.mean(0), S, x.norm(dim=0), scale, torch.zeros(len(S), dtype=torch.bool), values, vectors)
    return Whitening.of(spectrum, alpha=alpha, rcond=1e-10, gamma=1e-14)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
def test_the_scatter_of_whitened_rows_is_the_identity(alpha, x):
    whitening = whitening_of(x, alpha)

    z = (x - x.mean(0)) @ whitening.matrix

    assert whitening.rank == torch.linalg.matrix_rank(x - x.mean(0), rtol=1e-8)
    torch.testing.assert_close(z.mT @ z, torch.eye(whitening.rank, dtype=torch.float64))


def test_the_penalty_is_that_of_the_shortest_map_with_the_same_predictions(x, randn):
    whitening = whitening_of(x, alpha=3.0)
    W = randn(whitening.rank, 4)

    shortest = torch.linalg.pinv(x - x.mean(0), rtol=1e-8) @ ((x - x.mean(0)) @ whitening.matrix @ W)

    penalty = (whitening.ridge[:, None] * W.square()).sum()
    assert float(penalty) == pytest.approx(3.0 * float(shortest.square().sum()), rel=1e-8)


def test_another_ridge_has_the_same_coordinates(x):
    first, other = whitening_of(x, alpha=3.0), whitening_of(x, alpha=12.0)

    changed = first.with_alpha(12.0)

    assert torch.equal(changed.matrix, first.matrix)
    torch.testing.assert_close(changed.ridge, other.ridge)
    assert changed.alpha == 12.0


def test_condition_is_the_ratio_of_the_kept_eigenvalues(x):
    whitening = whitening_of(x)

    kept = whitening.spectrum.eigenvalues[whitening.kept]
    assert whitening.condition == pytest.approx(float(kept.max() / kept.min()))
    assert whitening_of(torch.ones(5, 3, dtype=torch.float64)).condition == 1.0
