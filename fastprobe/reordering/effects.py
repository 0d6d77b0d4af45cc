"""Compare a modified model's final hidden states and predictions with the baseline's, on one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastprobe.data.checks import attended_mask
from fastprobe.data.masked_batches import MaskedBatches
from fastprobe.errors import InputError, NumericalError
from fastprobe.models.calling import has_language_head
from fastprobe.models.protocols import Stack
from fastprobe.reordering.predictions import Predictions

Metric = Callable[[Tensor, Tensor], Tensor]
"""A final state and the baseline's, each ``(batch, length, width)``, to one number a token, ``(batch, length)``."""

Sums = dict[str, list[float]]
"""Sums over the tokens of each sequence of a batch, by name."""


class BatchEffects:
    """Comparison of final states of one batch with the baseline's.

    Args:
        stack: the model on the batch.
        mask: ``(batch, length)`` bool, the tokens that count.
        targets: ``(batch, length)`` int64, the id that each token should predict, -100 for none. ``None`` for a
            decoder, which predicts the next token, and for a model without known targets.
        baseline: the final state of the baseline.
        metrics: additional columns.
    """

    def __init__(
        self,
        stack: Stack,
        mask: Tensor,
        targets: Tensor | None,
        baseline: Tensor,
        metrics: Mapping[str, Metric],
    ):
        self.stack, self.mask, self.metrics = stack, mask, metrics
        self._baseline = stack.rows(baseline, mask).float()
        self._padded_baseline = stack.padded(baseline) if metrics else baseline
        self._predictions: Predictions | None = None
        if has_language_head(stack.model):
            at, target = _targets(stack, mask, targets)
            self._predictions = Predictions(stack, at, target, baseline)

    def __call__(self, state: Tensor) -> Sums:
        """Return the sums of one final state of the stack."""
        values = compare(self.stack.rows(state, self.mask).float(), self._baseline)
        if self.metrics:
            padded = self.stack.padded(state)
            for name, metric in self.metrics.items():
                values[name] = self._checked(name, metric(padded, self._padded_baseline))[self.mask]
        sums = sum_by_sequence(values, self.mask)
        if self._predictions is not None:
            sums |= sum_by_sequence(self._predictions(state), self._predictions.at)
        return sums

    def _checked(self, name: str, found: Any) -> Tensor:
        """Return what a metric gave, if it is one number for each token.

        Raises:
            InputError: it is something else.
        """
        if isinstance(found, Tensor) and found.shape == self.mask.shape and not found.is_complex():
            return found
        got = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise InputError(
            f"metrics: {name} must return a tensor of one number for each token, {tuple(self.mask.shape)}, got {got}"
        )


def compare(rows: Tensor, baseline: Tensor) -> dict[str, Tensor]:
    """Return the summands of ``cosine`` and ``relative_l2`` for each token.

    With h a row and b that of the baseline: ``cosine`` h·b / (‖h‖ ‖b‖), 0 if h or b is zero; ``error`` ‖h − b‖²;
    ``norm`` ‖b‖²; and ``tokens`` 1.

    Args:
        rows: ``(tokens, width)`` float32.
        baseline: ``(tokens, width)`` float32.
    """
    norms, baseline_norms = (torch.linalg.vector_norm(state, dim=1) for state in (rows, baseline))
    lengths = norms * baseline_norms
    cosine = torch.linalg.vecdot(rows, baseline) / lengths
    return {
        "tokens": torch.ones(len(rows), device=rows.device),
        "cosine": torch.where(lengths == 0, 0.0, cosine),  # NaN and infinity stay
        "error": torch.linalg.vector_norm(rows - baseline, dim=1).double().square(),
        "norm": baseline_norms.double().square(),
    }


def check_baseline(sums: Sums, number: int, dtype: torch.dtype) -> None:
    """Raise an error if a final state of the baseline is not finite, since no other state compares with it.

    Args:
        sums: of the baseline.
        number: of the batch, for the error message.
        dtype: of the states, for the error message.

    Raises:
        NumericalError: a final state is NaN or infinite.
    """
    if not np.isfinite(sums["norm"]).all():
        raise NumericalError(
            f"batch {number}: a final state of the model in its own order is NaN, infinite or too large for {dtype}"
        )


def sum_by_sequence(values: Mapping[str, Tensor], at: Tensor) -> Sums:
    """Return sums over the tokens of each sequence.

    Args:
        values: one number for each token where ``at`` is true, in row-major order.
        at: ``(batch, length)`` bool.
    """
    sequence = at.nonzero()[:, 0]
    zero = torch.zeros(len(at), dtype=torch.float64, device=at.device)
    return {name: zero.index_add(0, sequence, value.double()).tolist() for name, value in values.items()}


def predicted_batches(model: Any, batches: Any, tokenizer: Any, seed: int) -> Any:
    """Return batches with masked tokens and labels for an encoder with a masked-LM head; other models' batches as is.

    Args:
        model: with or without a language-model head.
        batches: from :func:`fastprobe.token_batches`.
        tokenizer: of the ids.
        seed: of the choice of masked tokens.
    """
    if not has_language_head(model) or model.can_generate():
        return batches
    return MaskedBatches(batches, tokenizer, seed)


def _targets(stack: Stack, mask: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the tokens whose logits are compared, ``(batch, length)`` bool, and their targets; -100 for none."""
    if targets is not None:
        at = (targets != -100) & mask
        return at, targets[at]
    model: Any = stack.model
    if model.can_generate():
        ids, attended = stack.batch["input_ids"], attended_mask(stack.batch)
        following = torch.full_like(ids, -100)
        following[:, :-1] = torch.where(attended[:, 1:], ids[:, 1:], -100)
        at = mask & (following != -100)
        return at, following[at]
    return mask, torch.full((int(mask.sum()),), -100, device=mask.device)
