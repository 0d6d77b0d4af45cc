"""``vocabulary_scores`` against float64 with all logits at once, then the promises of its contract."""

import sys

import pytest
import torch

from fastprobe.errors import ShapeError
from fastprobe.ops import vocabulary_scores

MODULE = sys.modules["fastprobe.ops.vocabulary_scores"]


def exact(x, weight, bias, target, own=None):
    logits = x.double() @ weight.double().mT + bias.double()
    kl = torch.zeros(len(x), dtype=torch.float64)
    if own is not None:
        log_p = (own.double() @ weight.double().mT + bias.double()).log_softmax(1)
        kl = (log_p.exp() * (log_p - logits.log_softmax(1))).sum(1)
    at_target = logits.gather(1, target.clamp(min=0)[:, None])[:, 0] * (target >= 0)
    return logits.logsumexp(1), at_target, logits.argmax(1), kl


@pytest.fixture(params=[1, 37, 2**20], ids=["a token at a time", "ragged slices", "one slice"])
def slices(request, monkeypatch):
    monkeypatch.setattr(MODULE, "SLICE", request.param)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize(("n", "vocabulary"), [(1, 1), (5, 60), (9, 101), (0, 7)])
def test_agrees_with_float64(n, vocabulary, randn, generator):
    x, own = randn(n, 24, dtype=torch.float32), randn(n, 24, dtype=torch.float32)
    weight, bias = randn(vocabulary, 24, dtype=torch.float32) / 5, 3 * randn(vocabulary, dtype=torch.float32)
    target = torch.randint(-1, vocabulary, (n,), generator=generator)
    baseline = vocabulary_scores(own, weight, bias, target)

    found = vocabulary_scores(x, weight, bias, target, (own, baseline.log_sum_exp))

    for got, expected in zip(found, exact(x, weight, bias, target, own), strict=True):
        torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=1e-5)
    assert not baseline.kl.any()


def test_the_baseline_against_itself_diverges_by_nothing(randn):
    x, weight = randn(6, 8, dtype=torch.float32), randn(50, 8, dtype=torch.float32)
    target = torch.zeros(6, dtype=torch.int64)

    own = vocabulary_scores(x, weight, None, target)

    assert not vocabulary_scores(x, weight, None, target, (x, own.log_sum_exp)).kl.any()


def test_logits_that_overflow_an_exponential_do_not():
    x, weight = torch.tensor([[1.0]]), torch.tensor([[300.0], [-300.0], [299.0]])

    found = vocabulary_scores(x, weight, None, torch.tensor([1]))

    assert found.log_sum_exp.item() == pytest.approx(300.3133, abs=1e-3)
    assert found.at_target.item() == -300


@pytest.mark.usefixtures("slices")
def test_never_as_many_logits_as_tokens_and_vocabulary(monkeypatch, randn):
    made = []
    plain = MODULE.linear
    monkeypatch.setattr(MODULE, "linear", lambda *args: made.append(plain(*args)) or made[-1])
    x, weight = randn(40, 8, dtype=torch.float32), randn(1000, 8, dtype=torch.float32)

    vocabulary_scores(x, weight, None, torch.zeros(40, dtype=torch.int64))

    assert max(logits.numel() for logits in made) <= max(MODULE.SLICE, 40)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(3)}, r"x must be \(N, D\) and weight \(V, D\), got \(3,\)"),
        ({"bias": torch.ones(3)}, r"bias must be \(5,\), got \(3,\)"),
        ({"target": torch.ones(2)}, r"target must be \(2,\) int64, got \(2,\) torch.float32"),
        ({"own": (torch.ones(2, 4), torch.ones(3))}, r"own must be \(2, 4\) and \(2,\), got \(2, 4\) and \(3,\)"),
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
