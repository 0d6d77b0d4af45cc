"""Spectra of several sources: the same bits in one call as separately, and the size of a call."""

from types import SimpleNamespace

import pytest
import torch

from fastprobe.errors import NumericalError
from fastprobe.regression import spectrum
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments
from fastprobe.regression.spectrum import Spectrum, decompose, spectra


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


def test_sources_decomposed_together_have_the_same_bits_as_separately(moments):
    together = decompose(moments, ["full", "deficient", "far"])

    for name, found in zip(["full", "deficient", "far"], together, strict=True):
        alone = Spectrum.of(moments, name)
        assert all(torch.equal(a, b) for a, b in zip(vars(found).values(), vars(alone).values(), strict=True)), name


def test_vectors_are_eigenvectors_of_the_correlations(moments):
    found = Spectrum.of(moments, "far")

    correlations = found.scatter / torch.outer(found.scale, found.scale)
    torch.testing.assert_close(correlations.diagonal(), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(correlations @ found.vectors, found.vectors * found.eigenvalues)


def test_every_source_comes_once_in_ascending_order_of_width(moments):
    assert [x for x, _ in spectra(moments, ["full", "narrow", "far"])] == ["narrow", "full", "far"]


@pytest.mark.parametrize(
    ("device", "memory", "calls"),
    [
        ("cpu", 10**9, [["n"], ["a"], ["b"], ["c"]]),
        ("cuda", 10**9, [["n"], ["a", "b", "c"]]),
        ("cuda", 2 * 24 * 12**2, [["n"], ["a", "b"], ["c"]]),
        ("cuda", 1, [["n"], ["a"], ["b"], ["c"]]),
    ],
)
def test_a_gpu_decomposes_sources_of_one_width_together_within_memory(device, memory, calls, monkeypatch):
    widths = {"a": 12, "n": 5, "b": 12, "c": 12}
    stub = SimpleNamespace(
        plan=SimpleNamespace(widths=widths), counts=SimpleNamespace(device=SimpleNamespace(type=device))
    )
    made = []
    monkeypatch.setattr(spectrum, "decompose", lambda moments, group: made.append(group) or group)

    assert sorted(x for x, _ in spectra(stub, widths, memory)) == sorted(widths)
    assert made == calls


def test_one_token_has_no_spectrum():
    moments = Moments.zero(MomentPlan.of([("x", "y")], {"x": 3, "y": 1}, folds=0))
    moments.update_({"x": torch.ones(1, 3), "y": torch.ones(1, 1)}, torch.zeros(1, dtype=torch.int64))

    with pytest.raises(NumericalError, match="x: must have at least 2 tokens for a fit, got 1"):
        Spectrum.of(moments, "x")
