"""Audits with ``exact=True``: sums, products and scores in float64, whatever the dtype of the model."""

import copy

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import BackendError
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments
from fastprobe.testing.tiny_models import tiny_batches, tiny_model
from tests.reference import columns, read_unpadded_points, token_folds
from tests.scan.test_linearity import SCAN

DTYPES = [torch.float32, torch.bfloat16]
PLAN = MomentPlan.of([("x", "y")], {"x": 6, "y": 3}, folds=2)


def moments_of(rows, **options):
    moments = Moments.zero(PLAN)
    moments.update_(rows, torch.arange(len(rows["x"])) % 2, **options)
    return moments


@pytest.fixture(params=DTYPES, ids=str)
def rows(request, residual_rows, randn):
    return {"x": residual_rows(5000, 6, request.param), "y": randn(5000, 3, dtype=request.param)}


def errors(moments, rows):
    """Return the largest errors of products, sums, squares and unit sums, relative to the size of the summands."""
    x, y = rows["x"].double(), rows["y"].double()
    a, b = x - moments.origin("x"), y - moments.origin("y")
    sizes = [torch.linalg.vector_norm(block, dim=0) for block in (a, b)]
    products = [(moments.cross("x", "x"), a, sizes[0]), (moments.cross("x", "y"), b, sizes[1])]
    found = [(got.sum(0) - a.mT @ other).abs() / torch.outer(sizes[0], size) for got, other, size in products]
    found += [(moments.sum("x").sum(0) - a.sum(0)).abs() / a.abs().sum(0)]
    found += [(moments.square("x").sum(0) / a.square().sum(0) - 1).abs()]
    unit = (y / torch.linalg.vector_norm(y, dim=1, keepdim=True)).sum(0)
    found += [(moments.units["y"] - unit).abs() / len(y) ** 0.5]
    return [float(error.max()) for error in found]


def test_every_sum_has_the_digits_of_float64(rows):
    assert max(errors(moments_of(rows, exact=True), rows)) <= 1e-13
    assert max(errors(moments_of(rows), rows)) > 1e-10  # otherwise the line above would prove nothing


def test_merged_sums_have_the_precision_of_the_least_precise_part(rows):
    audit, plain = moments_of(rows, exact=True), moments_of(rows)
    dtype = str(rows["x"].dtype).removeprefix("torch.")

    assert (audit.dtype, audit.precision) == (dtype, "float64")
    assert (plain.dtype, plain.precision) == (dtype, dtype)
    assert copy.deepcopy(audit).merge_(audit).precision == "float64"
    assert Moments.zero(PLAN).merge_(audit).precision == "float64"
    assert copy.deepcopy(audit).merge_(plain).precision == dtype
    audit.update_(rows, torch.zeros(5000, dtype=torch.int64))
    assert audit.precision == dtype


def test_the_precision_is_saved(rows, tmp_path):
    moments_of(rows, exact=True).save(tmp_path / "moments.safetensors")

    assert Moments.load(tmp_path / "moments.safetensors")[0].precision == "float64"


def test_a_fit_and_its_bound_are_those_of_float64_rows(rows):
    x, y = rows["x"], rows["y"]
    y = y + (x * x).sum(1, keepdim=True).to(y.dtype)
    wide = fp.LinearFit(6, 3).update(x.double(), y.double())

    audit, plain = (fp.LinearFit(6, 3, exact=exact).update(x, y) for exact in (True, False))

    for column in ("r2", "r2_cv", "r2_uniform", "anisotropy", "cka"):
        assert audit.score(column) == pytest.approx(wide.score(column), abs=1e-12), column
    torch.testing.assert_close(audit.solve().coef, wide.solve().coef, rtol=1e-9, atol=1e-9)
    assert audit.score("error_bound") <= 1e-10 < plain.score("error_bound")


def test_refinement_is_in_float64(rows):
    x, y = rows["x"], rows["y"]
    wide = fp.LinearFit(6, 3).update(x.double(), y.double()).refine([(x.double(), y.double())], bound=0)

    audit = fp.LinearFit(6, 3, exact=True).update(x, y).refine([(x, y)], bound=0)

    assert audit.score("r2") == pytest.approx(wide.score("r2"), abs=1e-12)
    assert audit.score("r2_cv") == pytest.approx(wide.score("r2_cv"), abs=1e-12)


def test_a_scan_has_the_columns_of_float64_and_records_it():
    model, batches = tiny_model("bert"), tiny_batches(sequences=48, batch_size=16)

    audit, plain = (fp.linearity(model, batches, elements=["ffn"], exact=exact, **SCAN) for exact in (True, False))

    stored, fold = read_unpadded_points(model, batches), token_folds(batches, 5)
    off = {True: 0.0, False: 0.0}
    for exact, scored in ((True, audit), (False, plain)):
        assert scored.config["exact"] is exact
        for row in scored.rows:
            right = columns(stored[f"resid_mid.{row['layer']}"], stored[f"resid_post.{row['layer']}"], fold)
            off[exact] = max(
                [off[exact], *(abs(row[c] - right[c]) for c in ("r2_cv", "cosine", "cosine_cv", "anisotropy"))]
            )
    assert off[True] <= 1e-10 < off[False]
    assert {row["backend"] for row in audit.rows} == {"torch"}
    assert {row["dtype"] for row in audit.rows} == {"float32"}


def test_kernels_that_multiply_in_float32_are_refused(rows):
    with pytest.raises(BackendError, match=r"backend 'cpu': .*; these arguments can run on: torch"):
        moments_of(rows, exact=True, backend="cpu")


def test_the_command_line_takes_exact(scan, tmp_path):
    code, _, _ = scan("--exact", "--keep-moments")

    assert code == 0
    assert fp.load(tmp_path / "out").config["exact"] is True
    code, _, err = scan("--resume")
    assert code == 2
    assert "exact=True, this one has exact=False" in err
