"""What a changed final state means: its distance from the model's own, and what a language-model head makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastprobe.data.masked_batches import MaskedBatches
from fastprobe.errors import InputError, NumericalError
from fastprobe.models.stack import LayerStack, has_language_head
from fastprobe.models.unpadded.stack import FlatStack
from fastprobe.reordering.predictions import Predictions
from fastprobe.results.result import BY_DEPTH

Metric = Callable[[Tensor, Tensor], Tensor]
Sums = dict[str, list[float]]
"""Sums over the tokens of each sequence of a batch."""

# Column -> the sums that it is the ratio of.
_STATE = {"cosine": ("cosine", "tokens"), "relative_l2": ("error", "norm")}
_HEAD = {
    "loss": ("loss", "predicted"),
    "accuracy": ("correct", "predicted"),
    "top1_agreement": ("agree", "seen"),
    "kl": ("kl", "seen"),
}
STATE_COLUMNS = (*_STATE,)
"""Columns that every model has."""

HEAD_COLUMNS = (*_HEAD, "delta_loss")
"""Columns that only a model with a language-model head has."""


class BatchEffects:
    """Compares final states of one batch with the model's own.

    Args:
        stack: the model on the batch.
        mask: ``(batch, length)`` bool, tokens that count.
        labels: ``(batch, length)`` int64, -100 where nothing is to be predicted; ``None`` for a decoder, which predicts
            the next token, and where nothing is known.
        state: the model's own final state.
        metrics: more columns, from a final state and the model's own to ``(batch, length)``.
    """

    def __init__(
        self,
        stack: LayerStack | FlatStack,
        mask: Tensor,
        labels: Tensor | None,
        state: Tensor,
        metrics: Mapping[str, Metric],
    ):
        self.stack, self.mask, self.metrics = stack, mask, metrics
        self._own = stack.rows(state, mask).float()
        self._own_padded = stack.padded(state) if metrics else state
        self._predictions: Predictions | None = None
        if has_language_head(stack.model):
            at, target = _predicted(stack, mask, labels)
            self._predictions = Predictions(stack, at, target, state)

    def __call__(self, state: Tensor) -> Sums:
        """The sums of one final state of the stack."""
        values = compared(self.stack.rows(state, self.mask).float(), self._own)
        if self.metrics:
            padded = self.stack.padded(state)
            values |= {name: metric(padded, self._own_padded)[self.mask] for name, metric in self.metrics.items()}
        sums = by_sequence(values, self.mask)
        if self._predictions is not None:
            sums |= by_sequence(self._predictions(state), self._predictions.at)
        return sums


def compared(tokens: Tensor, own: Tensor) -> dict[str, Tensor]:
    """What is summed over tokens of two states, each (tokens, width) float32, to compare them."""
    norms, own_norms = (torch.linalg.vector_norm(state, dim=1) for state in (tokens, own))
    lengths = norms * own_norms
    cosine = torch.linalg.vecdot(tokens, own) / lengths
    return {
        "tokens": torch.ones(len(tokens), device=tokens.device),
        "cosine": torch.where(lengths == 0, 0.0, cosine),  # one that is not finite stays so
        "error": torch.linalg.vector_norm(tokens - own, dim=1).double().square(),
        "norm": own_norms.double().square(),
    }


def check_own(sums: Sums, number: int, dtype: torch.dtype) -> None:
    """That the model's own final states of a batch are something that others can be compared with.

    Raises:
        NumericalError: one is NaN or infinite.
    """
    if not np.isfinite(sums["norm"]).all():
        raise NumericalError(
            f"batch {number}: a final state of the model in its own order is NaN, infinite or too large for {dtype}"
        )


def by_sequence(values: Mapping[str, Tensor], at: Tensor) -> Sums:
    """Sums over the tokens of each sequence.

    Args:
        values: one number a token, for the tokens where ``at`` is true, in order.
        at: ``(batch, length)`` bool.
    """
    sequence = at.nonzero()[:, 0]
    zero = torch.zeros(len(at), dtype=torch.float64, device=at.device)
    return {name: zero.index_add(0, sequence, value.double()).tolist() for name, value in values.items()}


def _predicted(stack: LayerStack | FlatStack, mask: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions whose logits are looked at, ``(batch, length)`` bool, and what each is to predict; -100 for nothing."""
    if labels is not None:
        at = (labels != -100) & mask
        return at, labels[at]
    model: Any = stack.model
    if model.can_generate():
        following = torch.full_like(stack.batch["input_ids"], -100)
        following[:, :-1] = torch.where(mask[:, 1:], stack.batch["input_ids"][:, 1:], -100)
        at = mask & (following != -100)
        return at, following[at]
    return mask, torch.full((int(mask.sum()),), -100, device=mask.device)


def predicted_batches(model: Any, batches: Any, tokenizer: Any, seed: int) -> Any:
    """The batches with labels where a model predicts hidden tokens, as encoders do; else as they are.

    Args:
        model: with or without a language-model head.
        batches: from :func:`fastprobe.token_batches`.
        tokenizer: what the ids are of.
        seed: of the choice of hidden tokens.
    """
    if not has_language_head(model) or model.can_generate():
        return batches
    return MaskedBatches(batches, tokenizer, seed)


class EffectSums:
    """The sums of every order over all sequences, and the rows they make; order 0 is the model's own."""

    def __init__(self, orders: int, metrics: Mapping[str, Metric]):
        if taken := metrics.keys() & {*_STATE, *_HEAD, "delta_loss", "tokens", "order", "name"}:
            raise InputError(f"metrics: {', '.join(sorted(taken))} is a column already; choose another name")
        self.columns = _STATE | _HEAD | {name: (name, "tokens") for name in metrics}
        self._sums: list[Sums] = [{} for _ in range(orders)]

    def add(self, order: int, sums: Sums) -> None:
        """Take in what one batch gave."""
        for name, values in sums.items():
            self._sums[order].setdefault(name, []).extend(values)

    def row(self, order: int) -> dict[str, Any]:
        """Every column of an order with its standard error over sequences; ``None`` where there is nothing to tell.

        Of states that are NaN or infinite there is nothing to tell, whatever a head makes of them.
        """
        row: dict[str, Any] = {}
        told = np.isfinite(self._sums[order].get("error", [])).all()
        for column in self.columns:
            value, error = self._column(order, column) if told else (None, None)
            row |= {column: value, f"{column}_se": error}
        row |= self._by_depth(order)
        own, mine = (np.array(self._sums[k].get("loss", [])) for k in (0, order))
        row["delta_loss"], row["delta_loss_se"] = ratio(mine - own, np.array(self._sums[0].get("predicted", [])))
        row["tokens"] = int(sum(self._sums[order].get("tokens", [])))
        return row

    def _column(self, order: int, column: str, at: str = "") -> tuple[float | None, float | None]:
        value, error = ratio(*(np.array(self._sums[order].get(name + at, [])) for name in self.columns[column]))
        if column == "relative_l2" and value is not None:
            root = value**0.5
            return root, None if error is None else error / (2 * root) if root else 0.0
        return value, error

    def _by_depth(self, order: int) -> dict[str, list[float | None]]:
        """The columns of states after 1, 2, ... steps, where those were asked for."""
        depths = sorted(int(name.removeprefix("tokens@")) for name in self._sums[order] if name.startswith("tokens@"))
        row: dict[str, list[float | None]] = {}
        for column in _STATE if depths else ():
            values, errors = zip(*(self._column(order, column, f"@{depth}") for depth in depths), strict=True)
            row |= {f"{column}{BY_DEPTH}": [*values], f"{column}_se{BY_DEPTH}": [*errors]}
        return row


def ratio(part: np.ndarray, whole: np.ndarray) -> tuple[float | None, float | None]:
    """Ratio of two sums and its standard error where sequences are what was drawn (linearised, as in surveys).

    ``None`` for what there is not: of nothing, or of sums that are NaN or infinite.
    """
    n, total = len(whole), whole.sum()
    if not total or not np.isfinite(total) or not np.isfinite(part).all():
        return None, None
    ratio = float(part.sum() / total)
    if n < 2:
        return ratio, None
    return ratio, float(np.sqrt(n / (n - 1) * np.square(part - ratio * whole).sum()) / total)
