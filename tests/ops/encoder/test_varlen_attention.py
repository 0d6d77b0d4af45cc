"""``varlen_attention``: every backend against float64, then its contract."""

import inspect

import pytest
import torch

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch.cpu_library import instruction_set, instruction_sets
from fastprobe.ops.encoder import cuda
from fastprobe.ops.encoder.varlen_attention import varlen_attention

RUNS = ["torch", "jagged", *(f"cpu {isa}" for isa in instruction_sets())]
LENGTHS = {
    "nothing": [],
    "one token": [1],
    "under a panel": [5, 5, 31],
    "panels": [32, 64],
    "ragged": [1, 33, 33, 100],
    "long": [515],
}


@pytest.fixture(params=RUNS)
def run(request):
    backend, _, isa = request.param.partition(" ")

    def call(*args):
        if backend == "jagged":  # a GPU runs it for float32 only; torch has it for CPUs, too
            if args[0].dtype != torch.float32:
                pytest.skip("jagged: for float32")
            return cuda.launch_varlen_attention(*args)
        if reason := varlen_attention.refusals(*args)[backend]:
            pytest.skip(f"{backend}: {reason}")
        if not isa:
            return varlen_attention.on(backend)(*args)
        with instruction_set(isa):
            return varlen_attention.on(backend)(*args)

    return call


def exact(q, k, v, lengths, heads):
    out = []
    for parts in zip(*(t.double().split(lengths) for t in (q, k, v)), strict=True):
        one, two, three = (part.unflatten(1, (heads, -1)).transpose(0, 1) for part in parts)
        weights = (one @ two.mT / one.shape[2] ** 0.5).softmax(2)
        out.append((weights @ three).transpose(0, 1).flatten(1))
    return torch.cat(out) if out else q.double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "width"), [(1, 1), (3, 11), (2, 32), (1, 65)])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_agrees_with_float64(run, lengths, heads, width, dtype, randn):
    q, k, v = (randn(sum(lengths), heads * width, dtype=dtype) for _ in range(3))

    out = run(q * 3, k, v, [(1, length) for length in lengths], heads)

    # Scores reach 20, so their rounding is about 1e-6 of a weight.
    unit = {torch.float64: 1e-14, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(out.double(), exact(q * 3, k, v, lengths, heads), rtol=0, atol=unit)


def test_a_run_is_that_many_sequences(run, randn):
    q, k, v = (randn(20, 6, dtype=torch.float32) for _ in range(3))

    torch.testing.assert_close(run(q, k, v, [(4, 5)], 2), run(q, k, v, [(1, 5)] * 4, 2))


def test_views_of_one_matrix_are_read_and_nothing_beside_them(run, randn):
    wide = torch.full((45, 70), float("nan"))
    wide[2:42, 3:69] = randn(40, 66, dtype=torch.float32)
    q, k, v = wide[2:42, 3:69].split(22, dim=1)

    out = run(q, k, v, [(2, 7), (1, 26)], 2)

    expected = exact(q, k, v, [7, 7, 26], 2)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=3e-6)


def test_large_scores_do_not_overflow(run):
    q = torch.tensor([[200.0], [-200.0], [1.0]])

    out = run(q, q, q, [(1, 3)], 1)

    torch.testing.assert_close(out[:2, 0], torch.tensor([200.0, -200.0]))


def test_a_nan_stays_in_its_sequence(run, randn):
    q, k, v = (randn(40, 6, dtype=torch.float32) for _ in range(3))
    k[25, 1] = float("nan")

    out = run(q, k, v, [(2, 20)], 2)

    assert not out[:20].isnan().any()
    assert out[20:, :3].isnan().all()


def flash(calls):
    """A stub of ``torch.nn.attention.varlen.varlen_attn`` as its documentation describes it."""

    def attend(q, k, v, starts, other_starts, longest, other_longest):
        calls.append(q.dtype)
        assert starts.dtype == torch.int32
        assert torch.equal(starts, other_starts)
        assert longest == other_longest == int(starts.diff().max())
        return exact(*(t.flatten(1) for t in (q, k, v)), starts.diff().tolist(), q.shape[1]).to(q.dtype).view(q.shape)

    return attend


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_numbers_run_in_flash_attention(dtype, monkeypatch, randn):
    calls = []
    monkeypatch.setattr(cuda, "_flash", lambda: flash(calls))
    q, k, v = (randn(18, 16, dtype=dtype) for _ in range(3))

    out = cuda.launch_varlen_attention(q, k, v, [(3, 4), (1, 6)], 2)

    assert calls == [dtype]
    torch.testing.assert_close(out.double(), exact(q, k, v, [4, 4, 4, 6], 2), rtol=0, atol=3e-2)


class OnGpu:
    """The attributes of a GPU tensor that ``refusals`` reads."""

    device = torch.device("cuda:0")

    def __init__(self, dtype, width):
        self.dtype, self.shape = dtype, (6, width)


@pytest.mark.parametrize(
    ("dtype", "width", "torch_has", "gpu_has", "reason"),
    [
        (torch.bfloat16, 16, True, True, None),
        (torch.float16, 128, True, True, None),
        (torch.float32, 22, False, False, None),
        (torch.float64, 16, True, True, "float32, bfloat16 and float16, not float64"),
        (torch.bfloat16, 22, True, True, "multiples of 8 up to 256, not 11"),
        (torch.bfloat16, 528, True, True, "multiples of 8 up to 256, not 264"),
        (torch.bfloat16, 16, False, True, "comes with torch 2.10"),
        (torch.bfloat16, 16, True, False, "does not run on this GPU"),
    ],
)
def test_a_gpu_refuses_what_torch_has_no_kernel_for(dtype, width, torch_has, gpu_has, reason, monkeypatch):
    monkeypatch.setattr(cuda, "_flash", lambda: print if torch_has else None)
    monkeypatch.setattr(cuda, "_runs_flash", lambda device: gpu_has)
    q = OnGpu(dtype, width)

    found = varlen_attention.refusals(q, q, q, [(2, 3)], 2)["cuda"]

    assert (found is None) if reason is None else (reason in found)


def test_a_torch_before_2_10_has_no_flash_attention_of_variable_lengths(monkeypatch):
    def missing(name):
        raise ImportError

    monkeypatch.setattr("importlib.import_module", missing)

    assert cuda._flash.__wrapped__() is None


def test_this_torch_takes_the_arguments_of_the_call():
    if cuda._flash() is None:
        pytest.skip("torch before 2.10")

    inspect.signature(cuda._flash()).bind(*range(7))


def test_a_cpu_tensor_is_refused():
    q = torch.ones(6, 4)

    assert "is on cpu, not on a GPU" in varlen_attention.refusals(q, q, q, [(2, 3)], 2)["cuda"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.ones(6)}, r"q must be \(N, 2 heads of one width\), got \(6,\)"),
        ({"heads": 3}, r"q must be \(N, 3 heads of one width\), got \(6, 4\)"),
        ({"k": torch.ones(5, 4)}, r"k must be \(6, 4\) torch.float32 like q, got \(5, 4\)"),
        ({"v": torch.ones(6, 4).double()}, "v must be .* got .* torch.float64"),
        ({"runs": [(2, 2)]}, r"runs must make up the 6 rows of q, got \[\(2, 2\)\]"),
    ],
)
def test_an_error_names_the_argument_that_does_not_fit(change, message):
    fine = {"q": torch.ones(6, 4), "k": torch.ones(6, 4), "v": torch.ones(6, 4), "runs": [(2, 3)], "heads": 2}

    with pytest.raises(ShapeError, match=message):
        varlen_attention(**(fine | change))
