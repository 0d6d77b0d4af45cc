"""What a language-model head makes of changed final states, against what it makes of the model's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.models.flat_stack import FlatStack
from fastprobe.models.stack import LayerStack
from fastprobe.ops import VocabularyScores, vocabulary_scores

LOGITS = 2**26
"""Logits that are made at a time where a head is not known by its parts."""


class Predictions:
    """Loss, accuracy and agreement at some tokens of a batch.

    Args:
        stack: the model on the batch.
        at: ``(batch, length)`` bool, tokens whose logits are looked at.
        target: int64, what each of them is to predict; -100 for nothing.
        state: the model's own final state.
    """

    def __init__(self, stack: LayerStack | FlatStack, at: Tensor, target: Tensor, state: Tensor):
        self.at, self._target, self._stack = at, target, stack
        self._baseline: Tensor | None = None  # features of a known head, else log-probabilities
        self._own = self._scores(state)

    def __call__(self, state: Tensor) -> dict[str, Tensor]:
        """What is summed over tokens, one number for each of them."""
        found, predicted = self._scores(state), self._target != -100
        return {
            "seen": torch.ones_like(found.kl),
            "predicted": predicted,
            "loss": (found.log_sum_exp - found.at_target) * predicted,
            "correct": (found.top == self._target) & predicted,
            "agree": found.top == self._own.top,
            "kl": found.kl,
        }

    def _scores(self, state: Tensor) -> VocabularyScores:
        tokens = self._stack.rows(state, self.at)
        if isinstance(self._stack, FlatStack):
            return self._by_slices(tokens)
        log_p = self._logits(self._stack, tokens).log_softmax(1)
        own = log_p if self._baseline is None else self._baseline
        self._baseline = own
        at_target = log_p.gather(1, self._target.clamp(min=0)[:, None])[:, 0]
        kl = (own.exp() * (own - log_p)).sum(1)
        return VocabularyScores(torch.zeros_like(at_target), at_target, log_p.argmax(1), kl)

    def _by_slices(self, tokens: Tensor) -> VocabularyScores:
        assert isinstance(self._stack, FlatStack)
        head = self._stack.masked_head
        assert head is not None
        features = head.features(tokens)
        own = None if self._baseline is None else (self._baseline, self._own.log_sum_exp)
        if self._baseline is None:
            self._baseline = features
        return vocabulary_scores(features, head.weight, head.bias, self._target, own)

    def _logits(self, stack: LayerStack, tokens: Tensor) -> Tensor:
        """(tokens, vocabulary) float32. What follows the layers works token by token, so only these tokens go in."""
        length, width = self.at.shape[1], tokens.shape[1]
        # In sequences of the length that the model was called with, which some families insist on.
        sequences = F.pad(tokens, (0, 0, 0, -len(tokens) % length)).view(-1, length, width)
        config: Any = stack.model.config
        at_a_time = max(1, LOGITS // (length * config.vocab_size))
        logits = [stack.head(part).logits.flatten(0, 1) for part in sequences.split(at_a_time)]
        return torch.cat(logits)[: len(tokens)].float()
