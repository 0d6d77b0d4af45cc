"""``bias_gelu_``: every backend against float64, then its contract."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch.cpu_library import instruction_set, instruction_sets
from fastprobe.ops.encoder.bias_gelu import bias_gelu_

RUNS = ["torch", "triton", *(f"cpu {isa}" for isa in instruction_sets())]


@pytest.fixture(params=RUNS)
def run_in_place(request):
    backend, _, isa = request.param.partition(" ")

    def call(x, bias):
        if reason := bias_gelu_.refusals(x, bias)[backend]:
            pytest.skip(f"{backend}: {reason}")
        with instruction_set(isa) if isa else nullcontext():
            bias_gelu_.on(backend)(x, bias)

    return call


@pytest.fixture
def run(run_in_place):
    def call(x, bias):
        out = x.clone()
        run_in_place(out, bias)
        return out

    return call


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 7), (5, 16), (40, 33), (3, 65), (7, 1023), (100, 1000)], ids=str)
def test_agrees_with_float64(run, dtype, shape, randn):
    x, bias = randn(*shape, dtype=dtype) * 2, randn(shape[1], dtype=dtype)

    out = run(x, bias)

    z = x + bias  # rounded to the dtype, as the error of the sum is not that of the GELU
    unit = torch.finfo(dtype).eps
    assert (out.double() - F.gelu(z.double())).abs().le(4 * unit * z.double().abs() + 1e-30).all()


def test_the_cpu_kernels_keep_their_accuracy_in_the_tail():
    """The tail is where 1 + erf(z) cancels, here down to 1e-8 of z."""
    if not instruction_sets():
        pytest.skip("the C++ kernels were not built")
    z = torch.linspace(-5.9, 6, 100_001)[None]

    for isa in instruction_sets():
        out = z.clone()
        with instruction_set(isa):
            bias_gelu_.on("cpu")(out, torch.zeros(z.shape[1]))
        exact = z.double() * torch.special.ndtr(z.double())
        assert ((out - exact) / exact).abs()[z != 0].max() <= 4e-6
        assert ((out - exact) / exact).abs()[z > -2].max() <= 1e-6


def test_the_gelu_has_erf_and_not_its_approximation_by_tanh(run):
    z = torch.tensor([[-2.0, -1.0, 0.5, 2.0]])

    out = run(z, torch.zeros(4))

    assert (out - F.gelu(z, approximate="tanh")).abs().max() > 1e-4


def test_rows_may_be_a_view_of_wider_rows(run_in_place, randn):
    wide = randn(6, 40, dtype=torch.float32)
    expected = wide.clone()
    expected[:, 7:30] = F.gelu(expected[:, 7:30] + 1)

    run_in_place(wide[:, 7:30], torch.ones(23))

    torch.testing.assert_close(wide, expected)


def test_large_numbers_give_zero_or_themselves(run):
    z = torch.tensor([[-1e30, -200.0, -15.0, 0.0, 15.0, 200.0, 1e30]])

    out = run(z, torch.zeros(7))

    torch.testing.assert_close(out, z.clamp(min=0), rtol=0, atol=1e-7)


def test_a_nan_stays_a_nan(run):
    assert run(torch.tensor([[float("nan"), 1.0]]), torch.zeros(2)).isnan().tolist() == [[True, False]]


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.ones(3), torch.ones(3), r"x must be \(N, D\) floating, got \(3,\)"),
        (torch.ones(2, 3).int(), torch.ones(3), "got .* torch.int32"),
        (torch.ones(2, 3), torch.ones(2), r"bias must be \(3,\) torch.float32 to match x, got \(2,\)"),
    ],
)
def test_an_error_names_the_argument_that_does_not_fit(x, bias, message):
    with pytest.raises(ShapeError, match=message):
        bias_gelu_(x, bias)
