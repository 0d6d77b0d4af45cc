"""Positions of tokens in models that have a table of them, and batches that are padded on the left."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.batches import select
from fastprobe.data.checks import attended_mask
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.calling import (
    arguments_of,
    body_of,
    device_of,
    evaluating,
    first_tensor,
    inputs_of,
    named_errors,
    to_device,
    without_cache,
)
from fastprobe.models.resolve import ModelPoints

SAME = {torch.float64: 1e-8, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Largest relative Frobenius error between the states of a sequence with padding and without, by dtype."""


def position_table(model: nn.Module) -> nn.Embedding | None:
    """Return the table of learned positions of a model, or ``None`` if it has none."""
    rows = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    for name, module in model.named_modules():
        named = re.search(r"pos|wpe", name.rpartition(".")[2])
        if named and isinstance(module, nn.Embedding) and position_rows(module) == rows:
            return module
    return None


def position_rows(table: nn.Embedding) -> int:
    """Return the number of positions in a table. OPT's table has two unused rows before that of position 0."""
    return table.num_embeddings - getattr(table, "offset", 0)


def most_tokens(model: nn.Module) -> int | None:
    """Return the length of the longest sequence that a table of learned positions has room for, else ``None``.

    RoBERTa's positions begin after the row of the padding token, so its table of 514 rows has room for 512 tokens.
    """
    table = position_table(model)
    if table is None:
        return None
    return position_rows(table) - (0 if table.padding_idx is None else table.padding_idx + 1)


class LeftPadding:
    """Positions for batches that are padded on the left.

    A model with absolute positions counts them from the first column of a batch, padding or not, unless it is told the
    positions. The first sequence with padding on its left runs with the padding and without. If its states differ,
    every such batch gets ``position_ids`` that begin at its tokens.

    Args:
        model: a Hugging Face model.
        points: its resolved points.
    """

    def __init__(self, model: nn.Module, points: ModelPoints):
        self._model, self._points = model, points
        self._first: int | None = None  # position of the first token; None until it is known
        self._as_is = False

    def filled(self, batch: Mapping[str, Any], mask: Tensor, number: int) -> Mapping[str, Any]:
        """Return a batch, with ``position_ids`` if it needs them.

        Args:
            batch: arguments of the model.
            mask: ``(batch, length)`` bool, true for tokens.
            number: of the batch, for the error message.

        Raises:
            InputError: padding on the left changes the states of this model, also with ``position_ids``.
            UnsupportedModelError: the states of this model have another shape than the batch.
        """
        if self._as_is or batch.get("position_ids") is not None or mask[:, 0].all():
            return batch
        padded = (mask.any(1) & ~mask[:, 0]).nonzero()[:1, 0]
        if not len(padded):
            return batch
        if self._first is None and not self._decide(select(batch, padded), number):
            return batch
        assert self._first is not None
        return {**batch, "position_ids": _positions(mask, self._first)}

    def _decide(self, batch: Mapping[str, Any], number: int) -> bool:
        """Return whether left-padded batches need ``position_ids``, from one sequence."""
        mask = attended_mask(batch)
        start = int(mask[0].int().argmax())
        alone = {
            key: value[:, start:] if isinstance(value, Tensor) and value.shape == mask.shape else value
            for key, value in batch.items()
        }
        expected = self._states(alone)[mask[:, start:]]

        def error(padded: Mapping[str, Any]) -> float:
            found = self._states(padded)[mask]
            return float((found - expected).double().norm() / expected.double().norm())

        allowed = SAME.get(expected.dtype, 1e-4)
        least = error(batch)
        if not least > allowed:
            self._as_is = True
            return False
        for first in self._candidates():
            if (found := error({**batch, "position_ids": _positions(mask, first)})) <= allowed:
                self._first = first
                return True
            least = min(least, found)
        raise InputError(
            f"batches: batch {number} is padded on the left, which changes the states of {type(self._model).__name__} "
            f"by {least:.1e} of their norm; pad on the right (tokenizer.padding_side = 'right')"
        )

    def _candidates(self) -> Iterator[int]:
        """Yield positions that the first token may have."""
        if "position_ids" not in arguments_of(body_of(self._model))[0]:
            return
        yield 0
        if (table := position_table(self._model)) is not None and table.padding_idx is not None:
            yield table.padding_idx + 1

    def _states(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the output of the last layer, ``(batch, length, width)``.

        Raises:
            UnsupportedModelError: the output has another shape.
        """
        found: list[Tensor] = []
        body, last = body_of(self._model), self._points.layers[-1]
        inputs = to_device(inputs_of(batch), device_of(self._model))
        with (
            named_errors(self._model),
            evaluating(self._model),
            torch.no_grad(),
            last.register_forward_hook(lambda *call: found.append(first_tensor(call[2]))),
        ):
            body(**inputs, **without_cache(body))
        shape = attended_mask(batch).shape
        if not found or found[0].ndim != 3 or found[0].shape[:2] != shape:
            got = f"states of shape {tuple(found[0].shape)}" if found else "no states"
            raise UnsupportedModelError(
                f"{type(self._model).__name__}: its last layer has {got} for a batch of {tuple(shape)}, so padding on "
                "the left cannot be checked; pad on the right (tokenizer.padding_side = 'right')"
            )
        return found[0].to(attended_mask(batch).device)


def _positions(mask: Tensor, first: int) -> Tensor:
    """Return the position of every token, ``(batch, length)`` int64, if that of the first is ``first``."""
    return (mask.long().cumsum(1) - 1).clamp(min=0) + first
