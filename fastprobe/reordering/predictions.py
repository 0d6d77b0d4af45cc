"""What a language-model head makes of changed final states, against what it makes of the model's own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.models.protocols import Stack
from fastprobe.ops.vocabulary_scores import VocabularyBaseline, vocabulary_scores

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

    def __init__(self, stack: Stack, at: Tensor, target: Tensor, state: Tensor):
        self.at, self._target, self._predicted = at, target, target != -100
        self._of: _OfSlices | _OfLogits
        if stack.masked_head is not None:
            self._of = _OfSlices(stack, at, target, state)
        else:
            self._of = _OfLogits(stack, at, target, state)

    def __call__(self, state: Tensor) -> dict[str, Tensor]:
        """What is summed over tokens, one number for each of them."""
        found = self._of(state)
        return {
            "seen": torch.ones_like(found.kl),
            "predicted": self._predicted,
            "loss": found.loss * self._predicted,
            "correct": (found.top == self._target) & self._predicted,
            "agree": found.top == self._of.own_top,
            "kl": found.kl,
        }


class _Found(NamedTuple):
    """What a head says of tokens, ``(n,)`` each."""

    loss: Tensor  # of the target; any number where there is none
    top: Tensor
    kl: Tensor


class _OfSlices:
    """By a head that is known, whose logits go by in slices of the vocabulary."""

    def __init__(self, stack: Stack, at: Tensor, target: Tensor, state: Tensor):
        assert stack.masked_head is not None
        self._stack, self._head, self._at, self._target = stack, stack.masked_head, at, target
        features = self._features(state)
        own = vocabulary_scores(features, self._head.weight, self._head.bias, target)
        self.own_top = own.top
        self._baseline = VocabularyBaseline.of(features, self._head.weight, self._head.bias, own.log_sum_exp)

    def __call__(self, state: Tensor) -> _Found:
        features = self._features(state)
        found = vocabulary_scores(features, self._head.weight, self._head.bias, self._target)
        kl = self._baseline.divergence(features, found.log_sum_exp)
        return _Found(found.log_sum_exp - found.at_target, found.top, kl)

    def _features(self, state: Tensor) -> Tensor:
        return self._head.features(self._stack.rows(state, self._at))


class _OfLogits:
    """By whatever follows the layers of a model, which works token by token, so only the tokens looked at go in."""

    def __init__(self, stack: Stack, at: Tensor, target: Tensor, state: Tensor):
        self._stack, self._at, self._target = stack, at, target
        self._own = self._log_p(state)
        self.own_top = self._own.argmax(1)

    def __call__(self, state: Tensor) -> _Found:
        log_p = self._log_p(state)
        loss = -log_p.gather(1, self._target.clamp(min=0)[:, None])[:, 0]
        return _Found(loss, log_p.argmax(1), (self._own.exp() * (self._own - log_p)).sum(1))

    def _log_p(self, state: Tensor) -> Tensor:
        """(tokens, vocabulary) float32."""
        tokens, length = self._stack.rows(state, self._at), self._at.shape[1]
        # In sequences of the length that the model was called with, which some families insist on.
        sequences = F.pad(tokens, (0, 0, 0, -len(tokens) % length)).view(-1, length, tokens.shape[1])
        config: Any = self._stack.model.config
        at_a_time = max(1, LOGITS // (length * config.vocab_size))
        logits = [self._stack.head(part).logits.flatten(0, 1) for part in sequences.split(at_a_time)]
        return torch.cat(logits)[: len(tokens)].float().log_softmax(1)
