"""Align the labels of batches with the tokens that predict them, by the convention of the model's own loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastprobe.data.batches import select
from fastprobe.data.checks import attended_mask
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.calling import arguments_of, inputs_of

NONE = -100
"""Label of a token that nothing should predict."""

TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""Largest relative difference from the model's own loss, by the dtype of its logits; 1e-5 for other dtypes."""


class LabelTargets:
    """Targets of a model's predictions, from labels in the convention of the model's own loss.

    The loss of a causal model compares the logits of token t with the label of token t + 1; that of an encoder, with
    the label of token t. The first labels of a run decide: the loss that the model computes from them must be one of
    the two. A model that computes no loss gets the convention of its kind.

    Args:
        model: a model with a language-model head, in evaluation mode.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._shifted: bool | None = None

    def __call__(self, batch: Mapping[str, Any], labels: Tensor) -> Tensor:
        """Return the id that each token should predict, ``(batch, length)`` int64, -100 for none.

        Args:
            batch: arguments of the model, without labels. Padding predicts nothing and is not predicted.
            labels: ``(batch, length)`` int64, -100 for none.

        Raises:
            InputError: the labels are not of the shape of the ids, or no integers.
            UnsupportedModelError: the model's own loss follows neither convention.
        """
        mask = attended_mask(batch)
        if labels.shape != mask.shape or labels.is_floating_point():
            raise InputError(
                f"batches: labels must be integers of shape {tuple(mask.shape)}, as the ids are, got {labels.dtype} of "
                f"shape {tuple(labels.shape)}"
            )
        labels = torch.where(mask, labels.long(), NONE)
        if self._shifted is None:
            self._shifted = self._measured(batch, mask, labels)
        shifted = _by_kind(self._model) if self._shifted is None else self._shifted
        return _shift(labels) if shifted else labels

    def _measured(self, batch: Mapping[str, Any], mask: Tensor, labels: Tensor) -> bool | None:
        """Return whether the model's own loss shifts the labels; ``None`` if these labels do not show it."""
        labels = labels.clone()
        labels[:, 1:][~mask[:, :-1]] = NONE  # padding before the first token would predict it
        sequence = (labels[:, 1:] != NONE).sum(1).argmax()[None]
        labels = labels[sequence]
        if not (labels[:, 1:] != NONE).any():
            return None
        names, takes_all = arguments_of(self._model)
        if not takes_all and "labels" not in names:
            return _by_kind(self._model)
        out: Any = self._model(**inputs_of(select(batch, sequence)), labels=labels)
        loss = getattr(out, "loss", None)
        if loss is None:
            return _by_kind(self._model)
        return self._convention_of(float(loss), out.logits, labels)

    def _convention_of(self, loss: float, logits: Tensor, labels: Tensor) -> bool:
        found = {shifted: _cross_entropy(logits, _shift(labels) if shifted else labels) for shifted in (True, False)}
        usual = _by_kind(self._model)
        for shifted in (usual, not usual):
            if math.isclose(found[shifted], loss, rel_tol=TOLERANCE.get(logits.dtype, 1e-5)):
                return shifted
        raise UnsupportedModelError(
            f"labels: the loss of {type(self._model).__name__} on one sequence is {loss:.4f}, but the cross-entropy of "
            f"its labels is {found[True]:.4f} for predictions of the next token and {found[False]:.4f} for those of "
            "the same token; leave the labels out"
        )


def _by_kind(model: Any) -> bool:
    """Return whether a model predicts the next token, as the models that generate text do."""
    return bool(model.can_generate())


def _shift(labels: Tensor) -> Tensor:
    """Return the label of the next token for each token; none for the last."""
    return F.pad(labels[:, 1:], (0, 1), value=NONE)


def _cross_entropy(logits: Tensor, targets: Tensor) -> float:
    return float(F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=NONE))
