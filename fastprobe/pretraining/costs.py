"""Parameter counts and FLOPs of BERT variants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

PREDICTED = 0.15
"""Share of the tokens that are masked, and so predicted, in training."""


@dataclass(frozen=True)
class Costs:
    """Parameter counts and FLOPs of a model."""

    parameters: int
    """All parameters. Shared weights count once."""
    layer_parameters: int
    """Parameters of the layers, without embeddings and head. Shared weights count once."""
    flops_per_token: int
    """FLOPs of the matrix products in one forward pass, divided by the tokens. Training takes three times as many."""

    @classmethod
    def of(cls, config: Any) -> Costs:
        """Count the parameters and FLOPs of a ``BertVariantConfig`` at its largest sequence length."""
        from fastprobe.models.bert_variants import BertVariantForMaskedLM  # here, because it imports Transformers

        with torch.device("meta"):
            model = BertVariantForMaskedLM(config)
        layers = sum(parameter.numel() for parameter in model.bert.encoder.parameters())
        everything = sum(parameter.numel() for parameter in model.parameters())
        return cls(everything, layers, round(flops_per_token(config, config.max_position_embeddings)))


def flops_per_token(config: Any, length: int, predicted: float = PREDICTED) -> float:
    """Return the FLOPs of the matrix products in one forward pass, divided by the number of tokens.

        L (8 H^2 + 4 n H + 4 H F) + p (2 H^2 + 2 H V)

    L layers of width H; n = sequence length; F = width of the FFN, 0 without one; V = vocabulary size; p = share of
    predicted tokens. Linear attention has 4 d H instead of 4 n H, where d is the width of a head. A multiplication and
    an addition are two FLOPs.

    Args:
        config: a ``BertVariantConfig``.
        length: tokens of a sequence.
        predicted: share of the tokens that the head predicts.
    """
    width, vocabulary = config.hidden_size, config.vocab_size
    mixed = length if config.attention == "softmax" else width // config.num_attention_heads
    ffn = 0 if config.ffn == "none" else config.intermediate_size
    layer = 8 * width**2 + 4 * mixed * width + 4 * width * ffn
    return config.num_hidden_layers * layer + predicted * (2 * width**2 + 2 * width * vocabulary)
