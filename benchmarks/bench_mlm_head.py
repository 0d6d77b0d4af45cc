"""Compare the masked-language-model loss from slices of the logits of masked tokens with the loss from all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM

from benchmarks.models import DEVICE
from fastprobe.models.masked_head import MaskedHead
from fastprobe.ops.vocabulary_scores import VocabularyBaseline, vocabulary_scores
from fastprobe.testing.peak_memory import peak_memory

VOCABULARY, WIDTH = 30_522, 384
SEQUENCES, LENGTH = (16, 128) if DEVICE.type == "cpu" else (256, 128)
MASKED = 0.15


@pytest.mark.benchmark(group="masked-LM loss, vocabulary 30,522")
def bench_mlm_head(duel: Callable[..., None], benchmark: Any) -> None:
    """Compare the time of the loss of 15 % masked tokens, from final hidden states, with the loss from all logits.

    The second peer computes logits of the masked tokens only. Ours also gives the accuracy. Its peak memory must be
    lower by at least the size of all logits.
    """
    model, states, labels = _task()
    contestants = {
        "ours": lambda: _ours(model, states, labels),
        "HF, all logits": lambda: _all_logits(model, states, labels),
        "logits of masked tokens": lambda: _masked_logits(model, states, labels),
    }
    ours, *peers = contestants
    duel(
        ours=contestants[ours],
        peers={name: contestants[name] for name in peers},
        exact=lambda: _all_logits(model.double(), states.double(), labels, back=model.float),
        error=lambda loss, exact: abs(loss - exact),
        gate=1e-5,
        flops=2.0 * int((labels >= 0).sum()) * (VOCABULARY + WIDTH) * WIDTH,
    )
    peaks = {name: peak_memory(run, DEVICE) for name, run in contestants.items()}
    benchmark.extra_info["peaks_mb"] = {name: peak / 1e6 for name, peak in peaks.items()}
    assert peaks["ours"] <= peaks["HF, all logits"] - 4 * labels.numel() * VOCABULARY


@pytest.mark.benchmark(group="masked-LM divergence, vocabulary 30,522")
def bench_mlm_divergence(duel: Callable[..., None]) -> None:
    """Compare the time of loss, accuracy and KL divergence from a baseline, which a run needs for every order.

    The peer keeps the baseline's probabilities of all masked tokens and computes their logits.
    """
    model, states, labels = _task()
    at = labels >= 0
    changed = states + 0.3 * torch.randn(states.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    head = MaskedHead.of(model)
    assert head is not None
    with torch.no_grad():
        before = head.features(states[at])
        baseline = VocabularyBaseline.of(
            before, head.weight, head.bias, vocabulary_scores(before, head.weight, head.bias, labels[at]).log_sum_exp
        )
        log_p = model.cls(states[at]).log_softmax(1)
        p = log_p.exp()

    @torch.no_grad()
    def ours() -> Tensor:
        features = head.features(changed[at])
        found = vocabulary_scores(features, head.weight, head.bias, labels[at])
        return baseline.divergence(features, found.log_sum_exp)

    @torch.no_grad()
    def by_hand() -> Tensor:
        log_q = model.cls(changed[at]).log_softmax(1)
        F.nll_loss(log_q, labels[at])
        log_q.argmax(1)
        return (p * (log_p - log_q)).sum(1)

    @torch.no_grad()
    def exact() -> Tensor:
        wide = model.double()
        before, after = (wide.cls(rows[at].double()).log_softmax(1) for rows in (states, changed))
        model.float()
        return (before.exp() * (before - after)).sum(1)

    duel(
        ours=ours,
        peers={"probabilities kept": by_hand},
        exact=exact,
        error=lambda kl, right: float((kl - right).abs().max()),
        gate=1e-5,
        flops=2.0 * int(at.sum()) * (VOCABULARY + WIDTH) * WIDTH,
    )


def _task() -> tuple[Any, Tensor, Tensor]:
    """Return a model with random weights, final hidden states, and labels of 15 % of the tokens."""
    torch.manual_seed(0)
    config = BertConfig(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=12, vocab_size=VOCABULARY)
    model = BertForMaskedLM(config).eval().to(DEVICE)
    states = torch.randn(SEQUENCES, LENGTH, WIDTH, device=DEVICE)
    labels = torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH), device=DEVICE)
    labels[torch.rand(SEQUENCES, LENGTH, device=DEVICE) >= MASKED] = -100
    return model, states, labels


@torch.no_grad()
def _ours(model: nn.Module, states: Tensor, labels: Tensor) -> float:
    head = MaskedHead.of(model)
    assert head is not None
    at = labels >= 0
    found = vocabulary_scores(head.features(states[at]), head.weight, head.bias, labels[at])
    return float((found.log_sum_exp - found.at_target).mean())


@torch.no_grad()
def _all_logits(model: nn.Module, states: Tensor, labels: Tensor, back: Callable[[], object] = lambda: None) -> float:
    loss = float(F.cross_entropy(model.cls(states).view(-1, VOCABULARY), labels.view(-1)))
    back()
    return loss


@torch.no_grad()
def _masked_logits(model: nn.Module, states: Tensor, labels: Tensor) -> float:
    at = labels >= 0
    return float(F.cross_entropy(model.cls(states[at]), labels[at]))
