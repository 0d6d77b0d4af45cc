"""``unit_sum``: every backend against float64, then its contract."""

import pytest
import torch

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch import triton
from fastprobe.ops._dispatch.cpu_library import instruction_set, instruction_sets
from fastprobe.ops._dispatch.operation import BACKENDS
from fastprobe.ops.unit_sum import triton as unit_sum_triton
from fastprobe.ops.unit_sum import unit_sum

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(0, 5), (1, 1), (40, 7), (300, 32), (2500, 70)]


@pytest.fixture(
    params=[b for b in BACKENDS if b != "cpu"] + [f"cpu {isa}" for isa in instruction_sets() or ["portable"]]
)
def run(request):
    """Return ``unit_sum`` on one backend and, for C++, one instruction set; skip where they refuse the arguments."""
    backend, _, isa = request.param.partition(" ")

    def call(rows, valid):
        if reason := unit_sum.refusals(rows, valid)[backend]:
            pytest.skip(f"{backend}: {reason}")
        if not isa:
            return unit_sum.on(backend)(rows, valid)
        with instruction_set(isa):
            return unit_sum.on(backend)(rows, valid)

    return call


def all_of(rows):
    return torch.ones(len(rows), dtype=torch.bool)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(run, dtype, shape, residual_rows):
    rows = residual_rows(*shape, dtype)

    total, count, finite = run(rows, all_of(rows))

    norms = torch.linalg.vector_norm(rows.double(), dim=1)
    expected = (rows.double() / norms.clamp(min=1e-300)[:, None]).sum(0)
    bound = (1e-13 if dtype == torch.float64 else 1e-6) * shape[0]
    torch.testing.assert_close(total, expected, rtol=0, atol=bound)
    assert int(count) == int((norms > 0).sum())
    assert bool(finite)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_do_not_count_may_hold_anything(run, dtype, randn):
    rows = randn(90, 40, dtype=dtype)
    valid = torch.arange(90) % 3 > 0
    expected = run(rows[valid], all_of(rows[valid]))
    rows[~valid] = float("nan")

    total, count, finite = run(rows, valid)

    # Other sums of the same rows: of as many, or with zeros between them.
    torch.testing.assert_close(total, expected.total, rtol=0, atol=(1e-13 if dtype == torch.float64 else 1e-6) * 60)
    assert int(count) == 60
    assert bool(finite)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 31, 32, 39])
def test_one_bad_number_is_found_wherever_it_is(run, bad, at, randn):
    rows = randn(50, 40, dtype=torch.float32)
    rows[17, at] = bad

    total, count, finite = run(rows, all_of(rows))

    assert not bool(finite)
    assert int(count) == 49
    assert total.isfinite().all()


def test_a_row_whose_squares_do_not_fit_is_not_finite(run):
    rows = torch.tensor([[1e20, 1.0], [3.0, 4.0]])

    total, count, finite = run(rows, all_of(rows))

    torch.testing.assert_close(total, torch.tensor([0.6, 0.8], dtype=torch.float64), rtol=1e-6, atol=0)
    assert int(count) == 1
    assert not bool(finite)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_counts_the_same_whatever_its_size(run, dtype, randn):
    rows = randn(90, 40, dtype=dtype)
    sizes = torch.tensor([2.0**-50, 1.0, 2.0**55])[torch.arange(90) % 3, None]

    total, count, finite = run(rows * sizes.to(dtype), all_of(rows))

    torch.testing.assert_close(total, run(rows, all_of(rows)).total, rtol=0, atol=1e-6 * 90)
    assert int(count) == 90
    assert bool(finite)


def test_rows_of_zeros_are_left_out(run):
    total, count, finite = run(torch.zeros(5, 3), torch.ones(5, dtype=torch.bool))

    assert not total.any()
    assert int(count) == 0
    assert bool(finite)


def test_any_strides(run, residual_rows):
    wide = residual_rows(120, 90)
    for rows in (wide[1:, 1:48], wide[::2, 5:80:2], wide.mT):
        got, expected = (run(r, all_of(r)).total for r in (rows, rows.contiguous()))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6 * len(rows))


@pytest.mark.parametrize(
    ("rows", "valid", "message"),
    [
        (torch.ones(3), torch.ones(3, dtype=torch.bool), r"rows must be \(N, D\) floating, got \(3,\)"),
        (torch.ones(3, 2).int(), torch.ones(3, dtype=torch.bool), "got .* torch.int32"),
        (torch.ones(3, 2), torch.ones(4, dtype=torch.bool), r"valid must be \(3,\) bool, got \(4,\)"),
        (torch.ones(3, 2), torch.ones(3), r"valid must be \(3,\) bool, got \(3,\) torch.float32"),
    ],
)
def test_arguments_that_do_not_fit_are_named(rows, valid, message):
    with pytest.raises(ShapeError, match=message):
        unit_sum(rows, valid)


@pytest.mark.skipif(not triton.interpreted(), reason="no interpreter")
def test_the_trial_of_the_triton_kernel_tells_right_sums_from_wrong_ones(monkeypatch):
    pytest.importorskip("triton")
    cpu, right = torch.device("cpu"), unit_sum_triton.launch_unit_sum
    assert unit_sum_triton.unit_sum_agrees(cpu)

    ones = torch.ones(200, dtype=torch.float64)
    for wrong in ({"total": ones}, {"finite": torch.tensor(True)}, {"counted": torch.tensor(7)}):
        monkeypatch.setattr(unit_sum_triton, "launch_unit_sum", lambda *args, w=wrong: right(*args)._replace(**w))
        assert not unit_sum_triton.unit_sum_agrees(cpu)
