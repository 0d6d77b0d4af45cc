"""Parameters and floating-point operations of a variant, and sizes and steps that make them equal to BERT's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from fastprobe.errors import InputError
from fastprobe.pretraining.variants import Size, Variant

BERT = Variant.parse("bert")
MATCHES = ("none", "parameters", "compute")
PREDICTED = 0.15
"""Share of the tokens that are predicted in training."""


@dataclass(frozen=True)
class Costs:
    """What a model takes."""

    parameters: int
    """All of them; weights in common count once."""
    layer_parameters: int
    """Those of the layers: without embeddings and head."""
    flops_per_token: int
    """Of products of matrices, in one forward pass, a multiplication and an addition being two; training takes three
    times as many."""

    @classmethod
    def of(cls, config: Any) -> Costs:
        """The costs of a ``BertVariantConfig`` on sequences of its greatest length."""
        from fastprobe.models.bert_variants import BertVariantForMaskedLM  # here, as it brings Transformers

        with torch.device("meta"):
            model = BertVariantForMaskedLM(config)
        layers = sum(parameter.numel() for parameter in model.bert.encoder.parameters())
        everything = sum(parameter.numel() for parameter in model.parameters())
        return cls(everything, layers, round(flops_per_token(config, config.max_position_embeddings)))


def flops_per_token(config: Any, length: int, predicted: float = PREDICTED) -> float:
    """Operations of one forward pass in training, divided by its tokens.

        L (8 H^2 + 4 n H + 4 H F) + p (2 H^2 + 2 H V)

    with n = length, F = width of the FFN (0 without one), V = vocabulary and p = share of tokens that are predicted. A
    linear attention takes 4 H d for 4 n H, d being the width of a head.

    Args:
        config: a ``BertVariantConfig``.
        length: tokens of a sequence.
        predicted: share of the tokens that go through the head.
    """
    width, vocabulary = config.hidden_size, config.vocab_size
    mixed = length if config.attention == "softmax" else width // config.num_attention_heads
    ffn = 0 if config.ffn == "none" else config.intermediate_size
    layer = 8 * width**2 + 4 * mixed * width + 4 * width * ffn
    return config.num_hidden_layers * layer + predicted * (2 * width**2 + 2 * width * vocabulary)


def matched(variant: Variant, size: Size, steps: int, match: str) -> tuple[Size, int]:
    """The size and the number of steps at which a variant costs what BERT costs at the given ones.

    Args:
        variant: what is to be trained; ``attention-for-ffn`` is matched in parameters whatever ``match`` is.
        size: of BERT.
        steps: that BERT would be trained for.
        match: ``"none"``; ``"parameters"``, by the number of layers; ``"compute"``, by the number of steps.

    Raises:
        InputError: there is no such match, or more layers bring no parameters.
    """
    if match not in MATCHES:
        raise InputError(f"match: {match!r} is not one of {', '.join(MATCHES)}")
    size.check()
    chosen = size
    if match == "parameters" or variant.layers_for_ffn:
        chosen = replace(size, layers=_layers_for(variant, size))
    if match == "compute":
        bert, changed = BERT.config(size), variant.config(chosen)
        ratio = flops_per_token(bert, size.max_seq_len) / flops_per_token(changed, size.max_seq_len)
        steps = max(1, round(steps * ratio))
    return chosen, steps


def _layers_for(variant: Variant, size: Size) -> int:
    """How many layers have as many parameters as those of BERT, as nearly as whole layers can."""
    if variant.changes.get("shared_layers"):
        raise InputError(
            "match: the layers of shared-layers have one set of weights, so that more of them have no more parameters; "
            "leave match out, or choose another hidden_size"
        )
    one = replace(size, layers=1)
    bert, changed = (Costs.of(v.config(one)).layer_parameters for v in (BERT, replace(variant, no_skip=())))
    return max(1, round(size.layers * bert / changed))
