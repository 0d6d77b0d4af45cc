"""Fits and scans on a GPU agree with those on a CPU. ``make gpu`` runs this file."""

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import BackendError
from fastprobe.regression.least_squares import Factorisation
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
GPU = "cuda"
COLUMNS = ("r2", "r2_cv", "r2_uniform", "anisotropy", "cka")


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def pair(request, residual_rows, randn):
    x = residual_rows(6000, 70)
    y = torch.tanh(x[:, :9]) + randn(6000, 9)
    return x.to(request.param), y.to(request.param)


@pytest.mark.parametrize("backend", ["auto", "cuda", "triton", "torch"])
def test_a_fit_agrees_with_that_of_float64_rows(pair, backend):
    wide = fp.LinearFit(70, 9, method=fp.LeastSquares(rcond=1e-7)).update(*(rows.double() for rows in pair))
    on_gpu = [rows.to(GPU) for rows in pair]
    try:
        fit = fp.LinearFit(70, 9, device=GPU, backend=backend).update(*on_gpu)
    except BackendError as reason:
        pytest.skip(str(reason))

    for looked in (fit, fit.refine([on_gpu], bound=0)):
        for column in COLUMNS:
            assert looked.score(column) == pytest.approx(wide.score(column), abs=1e-6), column


def test_an_exact_fit_has_the_digits_of_float64(pair):
    wide = fp.LinearFit(70, 9, method=fp.LeastSquares(rcond=1e-7)).update(*(rows.double() for rows in pair))

    audit = fp.LinearFit(70, 9, device=GPU, exact=True).update(*(rows.to(GPU) for rows in pair))

    for column in COLUMNS:
        assert audit.score(column) == pytest.approx(wide.score(column), abs=1e-10), column


def test_sources_factorised_together_give_the_same_maps_as_separately(residual_rows, randn):
    x = {"a": residual_rows(500, 133), "b": torch.nn.functional.layer_norm(residual_rows(500, 133), (133,))}
    rows = {name: block.to(GPU) for name, block in (x | {"y": randn(500, 4, dtype=torch.float32)}).items()}
    moments = Moments.zero(MomentPlan.of([("a", "y"), ("b", "y")], {"a": 133, "b": 133, "y": 4}, folds=3), GPU)
    moments.update_(rows, torch.arange(500, device=GPU) % 3)

    for source in Factorisation.together(moments, ["a", "b"], fp.LeastSquares()):
        alone = Factorisation.of(moments, source.x, fp.LeastSquares())
        assert source.whitening.rank == alone.whitening.rank
        torch.testing.assert_close(source.fit("y").coef, alone.fit("y").coef, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_scan_agrees_with_that_on_a_cpu(family):
    model, batches = tiny_model(family), tiny_batches(sequences=48, batch_size=16)
    expected = fp.linearity(model, batches, elements=["attention", "ffn"], progress=False)

    scan = fp.linearity(model.to(GPU), batches, elements=["attention", "ffn"], progress=False)

    for row, on_cpu in zip(scan.rows, expected.rows, strict=True):
        for column in ("r2", "r2_cv", "cosine", "cosine_cv", "anisotropy"):
            # The activations themselves differ by the rounding of float32.
            assert row[column] == pytest.approx(on_cpu[column], abs=1e-4), (row["element"], row["layer"], column)
