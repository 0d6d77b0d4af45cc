"""``attention_sublayer``: every backend, and both ways of the C++ one, against float64; then its contract."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops.encoder import cpu
from fastprobe.ops.encoder.attention_sublayer import attention_sublayer
from fastprobe.ops.encoder.layers import Norm
from fastprobe.ops.encoder.varlen_attention import varlen_attention

LENGTHS = {
    "one sequence": [(1, 70)],
    "tokens alone": [(100, 1)],
    "short after long": [(2, 40), (1, 3), (5, 1)],
    "ragged": [(1, 1), (3, 33), (1, 100), (7, 9)],
    "long": [(1, 515), (1, 2)],
}
SHAPES = {"one head": (20, 1, 20), "odd": (33, 3, 33), "narrower heads": (40, 2, 22), "wide": (130, 2, 130)}


@pytest.fixture
def run(run_sublayer):
    return partial(run_sublayer, attention_sublayer)


def sample(randn, runs, shape, dtype=torch.float32):
    width, heads, inner = shape
    n = sum(count * length for count, length in runs)
    sizes = [(inner, width)] * 3 + [(width, inner)]
    layers = tuple(((randn(e, d) / d**0.5).to(dtype), randn(e, dtype=dtype)) for e, d in sizes)
    norm = Norm(randn(width, dtype=dtype), randn(width, dtype=dtype), 1e-5)
    return randn(n, width, dtype=dtype), layers, runs, heads, norm


def exact(x, layers, runs, heads, norm):
    x, norm = x.double(), [norm.weight.double(), norm.bias.double(), norm.eps]
    wide = [[part.double() for part in layer] for layer in layers]
    inside = varlen_attention.on("torch")(*(F.linear(x, *layer) for layer in wide[:3]), runs, heads)
    out = F.linear(inside, *wide[3])
    return inside, out, F.layer_norm(out + x, x.shape[1:], *norm)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("runs", LENGTHS.values(), ids=LENGTHS)
def test_agrees_with_float64(run, runs, shape, dtype, randn):
    args = sample(randn, runs, shape, dtype)

    found = run(*args, (True, True))

    unit = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 0.2}[dtype]  # of states of size 1
    for tensor, expected in zip(found, exact(*args), strict=True):
        assert tensor.dtype == dtype
        torch.testing.assert_close(tensor.double(), expected, rtol=unit, atol=unit)


def test_outputs_are_the_same_whatever_is_kept(run, randn):
    args = sample(randn, [(9, 30), (3, 100)], (64, 4, 64))

    kept = run(*args, (True, True))
    for keep in ((False, False), (True, False), (False, True)):
        found = run(*args, keep)

        assert torch.equal(found.state, kept.state)
        for tensor, first, wanted in zip(found[:2], kept[:2], keep, strict=True):
            assert torch.equal(tensor, first) if wanted else tensor is None


def test_a_nan_stays_in_its_sequence(run, randn):
    args = sample(randn, [(10, 12)], (16, 2, 16))
    args[0][50, 3] = float("nan")

    state = run(*args, (False, False)).state

    assert state.isnan().any(1).nonzero().flatten().tolist() == list(range(48, 60))


def test_threads_change_no_bit(randn, monkeypatch):
    monkeypatch.setattr(cpu, "products_are_faster", lambda rows: True)
    args = (*sample(randn, [(30, 17), (9, 50), (4, 128)], (96, 3, 96)), (True, True))
    if attention_sublayer.refusals(*args)["cpu"]:
        pytest.skip("the C++ kernels were not built")

    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(attention_sublayer(*args))
    torch.set_num_threads(before)

    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": [(3, 3)]}, r"runs must make up the rows of x, \(8, 6\), got \[\(3, 3\)\]"),
        ({"heads": 4}, r"must be 4 heads of one width, and the output as wide as x, 6; got \[6, 6, 6, 6\]"),
        ({"layers": ((torch.ones(6, 5), None),) * 4}, r"a weight must be \(E, 6\) torch.float32"),
        ({"layers": ((torch.ones(6, 6), None),) * 3 + ((torch.ones(5, 6), None),)}, r"got \[6, 6, 6, 5\]"),
        ({"norm": Norm(torch.ones(5), torch.ones(6), 1e-5)}, r"weight of the norm must be \(6,\) torch.float32"),
    ],
)
def test_an_error_names_the_argument_that_does_not_fit(change, message):
    fine = {
        "x": torch.ones(8, 6),
        "layers": ((torch.ones(6, 6), None),) * 4,
        "runs": [(2, 4)],
        "heads": 3,
        "norm": Norm(torch.ones(6), torch.ones(6), 1e-5),
        "keep": (True, True),
    }
    with pytest.raises(ShapeError, match=message):
        attention_sublayer(**(fine | change))
