"""Masked-language-model loss: what does it gain to make logits for masked tokens only, a slice at a time?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM

from benchmarks.models import DEVICE
from fastprobe.models.masked_head import MaskedHead
from fastprobe.ops import vocabulary_scores

VOCABULARY, WIDTH = 30_522, 384
SEQUENCES, LENGTH = (16, 128) if DEVICE.type == "cpu" else (256, 128)
MASKED = 0.15


@pytest.mark.benchmark(group="masked-LM loss, vocabulary 30,522")
def bench_mlm_head(duel: Callable[..., None]) -> None:
    """How many times as fast is the loss of 15 % masked tokens, from final states, as by all logits?

    The second peer makes logits for the masked tokens only, as one would write it by hand. Ours gives accuracy, too.
    """
    torch.manual_seed(0)
    config = BertConfig(hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=12, vocab_size=VOCABULARY)
    model = BertForMaskedLM(config).eval().to(DEVICE)
    states = torch.randn(SEQUENCES, LENGTH, WIDTH, device=DEVICE)
    labels = torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH), device=DEVICE)
    labels[torch.rand(SEQUENCES, LENGTH, device=DEVICE) >= MASKED] = -100
    duel(
        ours=lambda: _ours(model, states, labels),
        peers={
            "HF, all logits": lambda: _all_logits(model, states, labels),
            "logits of masked tokens": lambda: _masked_logits(model, states, labels),
        },
        exact=lambda: _all_logits(model.double(), states.double(), labels, back=model.float),
        error=lambda loss, exact: abs(loss - exact),
        gate=1e-5,
        flops=2.0 * int((labels >= 0).sum()) * (VOCABULARY + WIDTH) * WIDTH,
    )


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
