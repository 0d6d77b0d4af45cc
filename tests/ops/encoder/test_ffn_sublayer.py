"""``ffn_sublayer``: every backend, and both ways of the C++ one, against float64; then its contract."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops.encoder import cpu
from fastprobe.ops.encoder.ffn_sublayer import ffn_sublayer
from fastprobe.ops.encoder.layers import Norm

SHAPES = {  # rows, widths of x and of every layer
    "a block": (64, (7, 33, 7)),
    "odd": (77, (33, 65, 33)),
    "one layer": (150, (40, 24)),
    "three layers": (130, (5, 17, 70, 5)),
    "blocks": (1003, (192, 768, 192)),
}


@pytest.fixture
def run(run_sublayer):
    return partial(run_sublayer, ffn_sublayer)


def sample(randn, n, widths, dtype=torch.float32, *, bias=True):
    x, residual = randn(n, widths[0], dtype=dtype), randn(n, widths[-1], dtype=dtype)
    layers = [((randn(e, d) / d**0.5).to(dtype), randn(e, dtype=dtype) if bias else None) for d, e in pairwise(widths)]
    return x, layers, residual, Norm(randn(widths[-1], dtype=dtype), randn(widths[-1], dtype=dtype), 1e-5)


def exact(x, layers, residual, norm):
    outputs = [x.double()]
    for index, (weight, bias) in enumerate(layers):
        out = F.linear(outputs[-1], weight.double(), None if bias is None else bias.double())
        outputs.append(out if index == len(layers) - 1 else F.gelu(out))
    total = outputs[-1] + residual.double()
    return outputs[1:], F.layer_norm(total, total.shape[1:], norm.weight.double(), norm.bias.double(), norm.eps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(("n", "widths"), SHAPES.values(), ids=SHAPES)
def test_agrees_with_float64(run, n, widths, bias, dtype, randn):
    x, layers, residual, norm = sample(randn, n, widths, dtype, bias=bias)

    outputs, state = run(x, layers, residual, norm, [True] * len(layers))

    expected, final = exact(x, layers, residual, norm)
    unit = {torch.float64: 1e-13, torch.float32: 2e-5, torch.bfloat16: 0.2}[dtype]  # of states of size 1
    for output, wanted in zip([*outputs, state], [*expected, final], strict=True):
        assert output.dtype == dtype
        torch.testing.assert_close(output.double(), wanted, rtol=unit, atol=unit)


def test_outputs_are_the_same_whatever_is_kept(run, randn):
    x, layers, residual, norm = sample(randn, 700, (64, 200, 64))

    kept, state = run(x, layers, residual, norm, [True, True])
    for keep in ([False, False], [True, False], [False, True]):
        outputs, again = run(x, layers, residual, norm, keep)

        assert torch.equal(again, state)
        for output, first, wanted in zip(outputs, kept, keep, strict=True):
            assert torch.equal(output, first) if wanted else output is None


def test_rows_may_be_a_view_of_wider_rows_and_the_residual_may_be_x(run, randn):
    wide = randn(200, 90, dtype=torch.float32)
    _, layers, _, norm = sample(randn, 200, (40, 50, 40))
    part = wide[:, 11:51]

    state = run(part, layers, part, norm, [False, False]).state

    torch.testing.assert_close(state, run(part.clone(), layers, part.clone(), norm, [False, False]).state)


def test_a_nan_stays_in_its_row(run, randn):
    x, layers, residual, norm = sample(randn, 100, (16, 32, 16))
    x[37, 3] = float("nan")

    state = run(x, layers, residual, norm, [False, False]).state

    assert state.isnan().any(1).nonzero().flatten().tolist() == [37]


def test_threads_change_no_bit(randn, monkeypatch):
    monkeypatch.setattr(cpu, "products_are_faster", lambda rows: True)
    args = (*sample(randn, 1500, (96, 300, 96)), [True, True])
    if ffn_sublayer.refusals(*args)["cpu"]:
        pytest.skip("the C++ kernels were not built")

    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        outputs, state = ffn_sublayer(*args)
        found.append([*outputs, state])
    torch.set_num_threads(before)

    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(4)}, r"x must be \(N, D\)"),
        ({"keep": [True]}, r"2 layers and 1 choices"),
        ({"layers": [(torch.ones(3, 5), None), (torch.ones(6, 3), None)]}, r"a weight must be \(E, 6\) torch.float32"),
        (
            {"layers": [(torch.ones(3, 6), torch.ones(2)), (torch.ones(6, 3), None)]},
            r"a bias must be \(3,\) .* to match its weight, got \(2,\)",
        ),
        ({"residual": torch.ones(8, 5)}, r"residual must be \(8, 6\)"),
        ({"norm": Norm(torch.ones(6), torch.ones(6).double(), 1e-5)}, r"bias of the norm must be \(6,\) torch.float32"),
    ],
)
def test_an_error_names_the_argument_that_does_not_fit(change, message):
    fine = {
        "x": torch.ones(8, 6),
        "layers": [(torch.ones(3, 6), None), (torch.ones(6, 3), None)],
        "residual": torch.ones(8, 6),
        "norm": Norm(torch.ones(6), torch.ones(6), 1e-5),
        "keep": [True, True],
    }
    with pytest.raises(ShapeError, match=message):
        ffn_sublayer(**(fine | change))


@pytest.mark.parametrize(("family", "faster"), [("emerald-rapids", True), ("zen4", True), ("unknown", False)])
def test_the_cpp_products_need_enough_rows_and_a_processor_on_which_they_were_measured(family, faster, monkeypatch):
    monkeypatch.setenv("FASTPROBE_PROCESSOR", family)
    monkeypatch.setattr(cpu, "instruction_sets", lambda: ["avx512", "avx2", "portable"])

    assert cpu.products_are_faster(cpu.ENOUGH_ROWS) == faster
    assert not cpu.products_are_faster(cpu.ENOUGH_ROWS - 1)


def test_a_build_without_avx512_leaves_products_to_a_library(monkeypatch):
    monkeypatch.setenv("FASTPROBE_PROCESSOR", "zen4")
    monkeypatch.setattr(cpu, "instruction_sets", lambda: ["avx2", "portable"])

    assert not cpu.products_are_faster(100_000)
