"""``vocabulary_scores``: every backend against float64 with all logits at once, then its contract."""

import sys

import pytest
import torch
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops.vocabulary_scores import VocabularyBaseline, vocabulary_scores
from fastprobe.testing.peak_memory import peak_memory

MODULE = sys.modules["fastprobe.ops.vocabulary_scores.api"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


SLICES = {"a token at a time": 1, "ragged slices": 37, "one slice": 2**20}


@pytest.fixture(params=[*SLICES, "triton"])
def run(request, monkeypatch):
    """Return the operation on a backend; on torch with several sizes of slices."""
    backend = "torch" if request.param in SLICES else request.param
    monkeypatch.setattr(MODULE, "SLICE", SLICES.get(request.param, 1))

    def call(*args):
        if reason := vocabulary_scores.refusals(*args)[backend]:
            pytest.skip(f"{backend}: {reason}")
        return vocabulary_scores.on(backend)(*args)

    return call


@pytest.fixture(params=SLICES.values(), ids=SLICES)
def slices(request, monkeypatch):
    monkeypatch.setattr(MODULE, "SLICE", request.param)


def numbers(n, vocabulary, width, dtype, randn, generator):
    """Return tokens, a head with logits up to about 10, and targets, some of them -1."""
    x, bias = randn(n, width, dtype=dtype), (3 * randn(vocabulary)).to(dtype)
    weight = (randn(vocabulary, width) * (2 / width**0.5)).to(dtype)
    return x, weight, bias, torch.randint(-1, vocabulary, (n,), generator=generator)


def logits_of(x, weight, bias):
    return x.double() @ weight.double().mT + (0 if bias is None else bias.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(
    ("n", "vocabulary", "width"), [(1, 1, 1), (5, 60, 24), (33, 101, 65), (2, 130, 385), (0, 7, 3)]
)
def test_agrees_with_float64(run, n, vocabulary, width, biased, dtype, randn, generator):
    x, weight, bias, target = numbers(n, vocabulary, width, dtype, randn, generator)
    bias = bias if biased else None

    found = run(x, weight, bias, target)

    logits = logits_of(x, weight, bias)
    at_target = logits.gather(1, target.clamp(min=0)[:, None])[:, 0] * (target >= 0)
    assert found.log_sum_exp.dtype == found.at_target.dtype == torch.float32
    torch.testing.assert_close(found.log_sum_exp.double(), logits.logsumexp(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.at_target.double(), at_target, rtol=0, atol=1e-5)
    # Logits of 16-bit numbers may be equal, or as good as.
    torch.testing.assert_close(logits.gather(1, found.top[:, None])[:, 0], logits.amax(1), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("far", [1.0, 1e-2])
def test_the_divergence_from_a_baseline_agrees_with_float64(dtype, far, randn, generator):
    own, weight, bias, target = numbers(40, 101, 24, dtype, randn, generator)
    x = (own.double() + far * randn(40, 24)).to(dtype)
    baseline = VocabularyBaseline.of(own, weight, bias, vocabulary_scores(own, weight, bias, target).log_sum_exp)

    kl = baseline.divergence(x, vocabulary_scores(x, weight, bias, target).log_sum_exp)

    log_p, log_q = (logits_of(rows, weight, bias).log_softmax(1) for rows in (own, x))
    # A log-sum-exp of 10 is rounded to 5e-7, whatever is left when two are taken from each other.
    torch.testing.assert_close(kl.double(), (log_p.exp() * (log_p - log_q)).sum(1), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_baseline_diverges_from_itself_by_nothing(run, dtype, randn, generator):
    x, weight, bias, target = numbers(6, 50, 8, dtype, randn, generator)

    baseline = VocabularyBaseline.of(x, weight, bias, run(x, weight, bias, target).log_sum_exp)

    assert not baseline.divergence(x, run(x, weight, bias, target).log_sum_exp).any()


def test_logits_that_overflow_an_exponential_do_not(run):
    x, weight = torch.tensor([[1.0]]), torch.tensor([[300.0], [-300.0], [299.0]])

    found = run(x, weight, None, torch.tensor([1]))

    assert found.log_sum_exp.item() == pytest.approx(300.3133, abs=1e-3)
    assert found.at_target.item() == -300
    assert found.top.item() == 0


@pytest.mark.filterwarnings("ignore:All-NaN slice", "ignore:invalid value")  # numpy's, in Triton's interpreter
def test_a_nan_stays_in_its_row(run, randn, generator):
    x, weight, bias, target = numbers(6, 50, 8, torch.float32, randn, generator)
    x[2, 5] = float("nan")

    found = run(x, weight, bias, target)

    assert found.log_sum_exp.isnan().tolist() == [False, False, True, False, False, False]
    assert (found.top < 50).all()


def test_rows_may_be_part_of_wider_ones(run, randn):
    wide, words = randn(9, 40, dtype=torch.float32), randn(50, 90, dtype=torch.float32)
    x, weight, target = wide[:, 3:27], words[:, 40:64], torch.zeros(9, dtype=torch.int64)

    found = run(x, weight, None, target)

    torch.testing.assert_close(found.log_sum_exp.double(), logits_of(x, weight, None).logsumexp(1), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("slices")
def test_the_logits_of_all_tokens_and_words_are_never_in_memory(monkeypatch, randn):
    made = []
    plain = MODULE.linear
    monkeypatch.setattr(MODULE, "linear", lambda *args: made.append(plain(*args)) or made[-1])
    x, weight = randn(40, 8, dtype=torch.float32), randn(1000, 8, dtype=torch.float32)

    found = vocabulary_scores(x, weight, None, torch.zeros(40, dtype=torch.int64))
    VocabularyBaseline.of(x, weight, None, found.log_sum_exp)

    assert max(logits.numel() for logits in made) <= max(MODULE.SLICE, 40)


def test_the_peak_of_memory_is_lower_by_all_logits_at_least(randn):
    x, weight = randn(1000, 16, dtype=torch.float32), randn(20_000, 16, dtype=torch.float32)
    target = torch.zeros(1000, dtype=torch.int64)

    try:
        by_logits = peak_memory(lambda: F.cross_entropy(x @ weight.mT, target))
    except NotImplementedError as reason:
        pytest.skip(str(reason))
    ours = peak_memory(lambda: vocabulary_scores(x, weight, None, target))

    assert ours <= by_logits - 4 * len(x) * len(weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3)}, r"x must be \(N, D\) and weight \(V, D\), got \(3,\)"),
        ({"weight": torch.ones(0, 4)}, r"weight must have at least one row, got \(0, 4\)"),
        ({"bias": torch.ones(3)}, r"bias must be \(5,\), got \(3,\)"),
        ({"target": torch.ones(2)}, r"target must be \(2,\) int64, got \(2,\) torch.float32"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message):
    fine = {
        "x": torch.ones(2, 4),
        "weight": torch.ones(5, 4),
        "bias": torch.ones(5),
        "target": torch.zeros(2, dtype=torch.int64),
    }

    with pytest.raises(ShapeError, match=message):
        vocabulary_scores(**(fine | change))


def test_triton_refuses_with_a_reason():
    x, target = torch.ones(2, 4), torch.zeros(2, dtype=torch.int64)

    assert (
        "several dtypes: torch.bfloat16, torch.float32"
        in (vocabulary_scores.refusals(x, x.bfloat16(), None, target)["triton"])
    )
    assert "no derivative" in vocabulary_scores.refusals(x.requires_grad_(), x, None, target)["triton"]
