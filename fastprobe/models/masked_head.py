"""Masked-language-model heads of BERT-family encoders, split into features and one product with the vocabulary."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastprobe.models.bert_families import BERT_FAMILIES
from fastprobe.models.forwards import replaced_forwards

_HEADS = {"Electra": "generator_predictions", "Bert": "cls.predictions"}
"""Family -> path of the head in the model; ``lm_head`` in the other families."""


class MaskedHead:
    """Head of a masked language model: logits are ``features(states) weight^T + bias``, token by token."""

    def __init__(self, head: nn.Module, decoder: nn.Linear):
        self._head, self._decoder = head, decoder
        self.weight, self.bias = decoder.weight, decoder.bias  # (vocabulary, D), (vocabulary,)

    @classmethod
    def of(cls, model: Any) -> MaskedHead | None:
        """Return the head of a model, or ``None`` if its class is not known here."""
        family = BERT_FAMILIES.get(type(model).__module__, "")
        if not family or type(model).__name__ != f"{family}ForMaskedLM":
            return None
        head, decoder = _HEADS.get(family, "lm_head"), model.get_output_embeddings()
        parts = dict(model.named_modules())
        if head not in parts or type(decoder) is not nn.Linear:
            return None
        weight: Tensor = decoder.weight
        plain = type(weight) is nn.Parameter and not weight.is_meta  # neither quantised nor offloaded
        return cls(parts[head], decoder) if plain else None

    def features(self, states: Tensor) -> Tensor:
        """Return the input of the product with the vocabulary, ``(N, D)``, for final hidden states ``(N, width)``."""
        with replaced_forwards({self._decoder: lambda features: features}):
            return self._head(states)
