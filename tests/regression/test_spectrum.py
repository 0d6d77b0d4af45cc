"""Scatters of sources, their spectra, and the groups of sources that are factorised together."""

from types import SimpleNamespace

import pytest
import torch

from fastprobe.errors import NumericalError
from fastprobe.regression.least_squares import MATRICES, source_groups
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments
from fastprobe.regression.spectrum import Scatter, Spectrum


@pytest.fixture
def moments(residual_rows, randn):
    """Return moments of four sources: full rank, rank-deficient with constant columns, far means, narrow."""
    layer_norm = torch.nn.functional.layer_norm(residual_rows(300, 12), (12,)) * torch.linspace(0.2, 5, 12)
    layer_norm[:, 3:5] = 7.0
    blocks = {"full": residual_rows(300, 12), "deficient": layer_norm, "far": residual_rows(300, 12) + 1000}
    blocks |= {"narrow": randn(300, 5, dtype=torch.float32), "y": randn(300, 2, dtype=torch.float32)}
    widths = {name: rows.shape[1] for name, rows in blocks.items()}
    plan = MomentPlan.of([(x, "y") for x in ("full", "deficient", "far", "narrow")], widths, folds=3)
    summed = Moments.zero(plan)
    summed.update_(blocks, torch.arange(300) % 3)
    return summed


def test_vectors_are_eigenvectors_of_the_correlations(moments):
    source = Scatter.of(moments, "far")

    found = Spectrum.of(source)

    correlations = source.scatter / torch.outer(source.scale, source.scale)
    torch.testing.assert_close(correlations.diagonal(), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(correlations @ found.vectors, found.vectors * found.values)


def test_constant_columns_have_no_eigenvectors(moments):
    source = Scatter.of(moments, "deficient")

    found = Spectrum.of(source)

    assert source.varies.tolist() == [i not in (3, 4) for i in range(12)]
    assert found.vectors.shape == (12, 10)
    assert not found.vectors[3:5].any()
    torch.testing.assert_close(source.equilibrated @ found.vectors, found.vectors * found.values)


@pytest.mark.parametrize(
    ("device", "memory", "groups"),
    [
        ("cpu", 10**9, [["n"], ["a"], ["b"], ["c"]]),
        ("cuda", 10**9, [["n"], ["a", "b", "c"]]),
        ("cuda", 2 * 8 * MATRICES * 12**2, [["n"], ["a", "b"], ["c"]]),
        ("cuda", 1, [["n"], ["a"], ["b"], ["c"]]),
    ],
)
def test_a_gpu_factorises_sources_of_one_width_together_within_memory(device, memory, groups):
    widths = {"a": 12, "n": 5, "b": 12, "c": 12}
    stub = SimpleNamespace(
        plan=SimpleNamespace(widths=widths), counts=SimpleNamespace(device=SimpleNamespace(type=device))
    )

    assert source_groups(stub, [*widths, "b"], memory) == groups


def test_one_token_has_no_scatter():
    moments = Moments.zero(MomentPlan.of([("x", "y")], {"x": 3, "y": 1}, folds=0))
    moments.update_({"x": torch.ones(1, 3), "y": torch.ones(1, 1)}, torch.zeros(1, dtype=torch.int64))

    with pytest.raises(NumericalError, match="x: must have at least 2 tokens for a fit, got 1"):
        Scatter.of(moments, "x")
