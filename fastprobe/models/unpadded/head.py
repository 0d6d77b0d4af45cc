"""The masked-language-model head of a BERT-family encoder, up to its last product."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastprobe.models.stack import replaced_forwards
from fastprobe.models.unpadded.refusals import FAMILIES

_PLACES = {"Electra": "generator_predictions", "Bert": "cls.predictions"}
"""Where the head is, by what the name of its model begins with; ``lm_head`` in the other families."""


class MaskedHead:
    """What a head computes of single tokens: ``features(tokens)`` and a product with ``weight`` and ``bias``."""

    def __init__(self, head: nn.Module, decoder: nn.Linear):
        self._head, self._decoder = head, decoder
        self.weight, self.bias = decoder.weight, decoder.bias

    @classmethod
    def of(cls, model: Any) -> MaskedHead | None:
        """The head of a model, or ``None`` where it is not one that is known here."""
        family = FAMILIES.get(type(model).__module__, "")
        if not family or type(model).__name__ != f"{family}ForMaskedLM":
            return None
        head, decoder = _PLACES.get(family, "lm_head"), model.get_output_embeddings()
        parts = dict(model.named_modules())
        return cls(parts[head], decoder) if head in parts and type(decoder) is nn.Linear else None

    def features(self, tokens: Tensor) -> Tensor:
        """What the last product gets, ``(N, D)``, of final states ``(N, width)``."""
        with replaced_forwards({self._decoder: lambda features: features}):
            return self._head(tokens)
