"""Compare the predictions of a language-model head on changed final states with those on the baseline's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import InputError
from fastprobe.models.calling import logits_of
from fastprobe.models.protocols import Stack
from fastprobe.ops.vocabulary_scores import VocabularyBaseline, vocabulary_scores

LOGITS = 2**26
"""Most logits that are computed at a time by the model's own head."""


class Predictions:
    """Loss, accuracy and agreement with the baseline at some tokens of a batch.

    Args:
        stack: the model on the batch.
        at: ``(batch, length)`` bool, tokens whose logits are compared.
        target: ``(tokens,)`` int64, the id that each of them should predict; -100 for none.
        baseline: the final state of the baseline.
    """

    def __init__(self, stack: Stack, at: Tensor, target: Tensor, baseline: Tensor):
        self.at, self._target, self._predicted = at, target, target != -100
        self._scores: _SlicedScores | _LogitScores
        if stack.masked_head is not None:
            self._scores = _SlicedScores(stack, at, target, baseline)
        else:
            self._scores = _LogitScores(stack, at, target, baseline)

    def __call__(self, state: Tensor) -> dict[str, Tensor]:
        """Return the summands of every column for a final state: one number for each token."""
        found = self._scores(state)
        return {
            "seen": torch.ones_like(found.kl),
            "predicted": self._predicted,
            "loss": found.loss * self._predicted,
            "correct": (found.top == self._target) & self._predicted,
            "agree": found.top == self._scores.baseline_top,
            "kl": found.kl,
        }


class _TokenScores(NamedTuple):
    """Scores of the logits at some tokens, ``(n,)`` each."""

    loss: Tensor  # of the target; undefined where there is none
    top: Tensor  # id of the largest logit
    kl: Tensor  # KL divergence from the baseline's distribution


class _SlicedScores:
    """Scores from a masked-LM head whose parts are known. The vocabulary is processed in slices."""

    def __init__(self, stack: Stack, at: Tensor, target: Tensor, baseline: Tensor):
        assert stack.masked_head is not None
        self._stack, self._head, self._at, self._target = stack, stack.masked_head, at, target
        features = self._features(baseline)
        found = vocabulary_scores(features, self._head.weight, self._head.bias, target)
        self.baseline_top = found.top
        self._baseline = VocabularyBaseline.of(features, self._head.weight, self._head.bias, found.log_sum_exp)

    def __call__(self, state: Tensor) -> _TokenScores:
        features = self._features(state)
        found = vocabulary_scores(features, self._head.weight, self._head.bias, self._target)
        kl = self._baseline.divergence(features, found.log_sum_exp)
        return _TokenScores(found.log_sum_exp - found.at_target, found.top, kl)

    def _features(self, state: Tensor) -> Tensor:
        return self._head.features(self._stack.rows(state, self._at))


class _LogitScores:
    """Scores from the modules after the last layer.

    They work token by token, so they get only the tokens compared, unless they accept only as many sequences as the
    batch has.
    """

    def __init__(self, stack: Stack, at: Tensor, target: Tensor, baseline: Tensor):
        self._stack, self._at, self._target = stack, at, target
        self._logits = self._logits_of_tokens
        try:
            self._baseline = self._log_p(baseline)
        except (RuntimeError, ValueError, IndexError):
            self._logits = self._logits_of_batch
            self._baseline = self._log_p(baseline)
        self.baseline_top = self._baseline.argmax(1)

    def __call__(self, state: Tensor) -> _TokenScores:
        log_p = self._log_p(state)
        if len(self._target) and int(self._target.max()) >= log_p.shape[1]:
            raise InputError(
                f"batches: token {int(self._target.max())} has no logit, because the head of "
                f"{type(self._stack.model).__name__} predicts {log_p.shape[1]} tokens; leave out batches with it"
            )
        loss = -log_p.gather(1, self._target.clamp(min=0)[:, None])[:, 0]
        kl = (self._baseline.exp() * (self._baseline - log_p)).sum(1)
        return _TokenScores(loss, log_p.argmax(1), kl)

    def _log_p(self, state: Tensor) -> Tensor:
        """Return log probabilities, ``(tokens, vocabulary)`` float32."""
        return self._logits(state).float().log_softmax(1)

    def _logits_of_tokens(self, state: Tensor) -> Tensor:
        tokens, length = self._stack.rows(state, self._at), self._at.shape[1]
        # Some model families accept only sequences of the length of the forward pass that was recorded.
        sequences = F.pad(tokens, (0, 0, 0, -len(tokens) % length)).view(-1, length, tokens.shape[1])
        head: Any = self._stack.model.get_output_embeddings()  # type: ignore[operator]
        outputs = getattr(head, "out_features", None) or len(head.weight)  # the weight of a quantised head is no tensor
        at_a_time = max(1, LOGITS // (length * outputs))
        logits = [logits_of(self._stack.head(part)).flatten(0, 1) for part in sequences.split(at_a_time)]
        return torch.cat(logits)[: len(tokens)]

    def _logits_of_batch(self, state: Tensor) -> Tensor:
        return logits_of(self._stack.head(self._stack.padded(state)))[self._at]
