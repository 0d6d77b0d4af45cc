"""``add_norm``: every backend against float64, then its contract."""

import pytest
import torch
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch.cpu_library import instruction_set, instruction_sets
from fastprobe.ops.encoder.add_norm import add_norm

SHAPES = [(0, 5), (1, 1), (3, 7), (5, 16), (40, 33), (3, 65), (7, 1023), (300, 384)]
RUNS = ["torch", "triton", *(f"cpu {isa}" for isa in instruction_sets())]


@pytest.fixture(params=RUNS)
def run(request):
    backend, _, isa = request.param.partition(" ")

    def call(*args):
        if reason := add_norm.refusals(*args)[backend]:
            pytest.skip(f"{backend}: {reason}")
        if not isa:
            return add_norm.on(backend)(*args)
        with instruction_set(isa):
            return add_norm.on(backend)(*args)

    return call


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64(run, dtype, shape, randn, residual_rows):
    x, residual = residual_rows(*shape, dtype), randn(*shape, dtype=dtype)
    weight, bias = randn(shape[1], dtype=dtype), randn(shape[1], dtype=dtype)

    out = run(x, residual, weight, bias, 1e-5)

    wide = [t.double() for t in (x, residual, weight, bias)]
    exact = F.layer_norm(wide[0] + wide[1], shape[1:], wide[2], wide[3], 1e-5)
    assert out.dtype == dtype
    # Sums are rounded once, to a unit of the largest column; the norm then divides by the spread of the row.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=4 * unit, atol=16 * unit)


def test_rows_may_be_a_view_of_wider_rows(run, randn):
    weight = torch.ones(30)
    x, residual = randn(20, 90, dtype=torch.float32)[:, 5:35], randn(20, 70, dtype=torch.float32)[:, 40:]

    torch.testing.assert_close(
        run(x, residual, weight, weight, 1e-5), add_norm.on("torch")(x, residual, weight, weight, 1e-5)
    )


def test_a_nan_stays_in_its_row(run, randn):
    x, weight = randn(6, 40, dtype=torch.float32), torch.ones(40)
    x[2, 35] = float("nan")

    out = run(x, torch.zeros_like(x), weight, weight, 1e-5)

    assert out.isnan().all(1).tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_call_that_records_gradients_is_refused(backend, randn):
    x, weight = randn(3, 4, dtype=torch.float32), torch.ones(4, requires_grad=True)

    assert "derivative" in add_norm.refusals(x, x, weight, weight, 1e-5)[backend]


def test_triton_refuses_rows_too_wide_for_its_registers():
    x = torch.ones(1, 20_000)

    assert "up to 16384 columns, not 20000" in add_norm.refusals(x, x, x[0], x[0], 1e-5)["triton"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3)}, r"x and residual must be \(N, D\) alike, got \(3,\)"),
        ({"residual": torch.ones(2, 4)}, r"got \(3, 4\) torch.float32 and \(2, 4\)"),
        ({"weight": torch.ones(3)}, r"weight must be \(4,\) torch.float32 to match x, got \(3,\)"),
        ({"bias": torch.ones(4).double()}, r"bias must be .* got \(4,\) torch.float64"),
    ],
)
def test_an_error_names_the_argument_that_does_not_fit(change, message):
    fine = {"x": torch.ones(3, 4), "residual": torch.ones(3, 4), "weight": torch.ones(4), "bias": torch.ones(4)}

    with pytest.raises(ShapeError, match=message):
        add_norm(**(fine | change), eps=1e-5)
