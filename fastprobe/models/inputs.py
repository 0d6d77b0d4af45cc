"""Batches of a user, checked and completed for one model while they are read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.batches import digest_of
from fastprobe.data.checks import ATTENDED, INPUTS, TOKEN_MASK, attended_mask, checked_mask
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.batch_arguments import plain_arguments
from fastprobe.models.calling import arguments_of, body_of, with_decoder_inputs
from fastprobe.models.examples import input_of
from fastprobe.models.positions import LeftPadding, most_tokens, position_rows, position_table
from fastprobe.models.reordered import check_not_reordered
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.state_masks import StateMasks
from fastprobe.models.wrappers import check_wrapper


class ModelBatches:
    """Batches that a model can run. Every verb reads the batches of its user through this class.

    A batch without tokens is left out. All others get the form that ``plain_arguments`` describes. A batch that is
    padded on the left gets ``position_ids`` where the model needs them. Readings after the first must give the same
    batches, because folds and fitted maps belong to sequences by their number.

    Args:
        model: a Hugging Face model.
        points: its resolved points.
        batches: dicts with ``input_ids`` and ``attention_mask``, and perhaps ``token_mask``, each ``(batch, length)``;
            or with what an encoder of images or sound reads, see :class:`~fastprobe.models.state_masks.StateMasks`.
        labels: keys of the batches that the model does not get.

    Attributes:
        source: the batches of the user.
        tokens: number of their tokens, if it is known.
        counted: which tokens count, if it is known.

    Raises:
        InputError: the batches are not an iterable of dicts; or, while they are read, the model cannot run one.
        UnsupportedModelError: one module is several layers of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        points: ModelPoints,
        batches: Iterable[Mapping[str, Any]],
        labels: Collection[str] = (),
    ):
        if isinstance(batches, Mapping):
            raise InputError(f"batches: must be an iterable of dicts, got one {type(batches).__name__}; pass [batch]")
        if isinstance(batches, str | bytes) or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
            raise InputError(
                f"batches: must be an iterable of dicts, got {type(batches).__name__}; token_batches(...) makes one"
            )
        if points.loops:
            raise UnsupportedModelError(
                f"{type(model).__name__}: its layers run several times in one forward pass, so a layer has no single "
                "input and output"
            )
        if len({*points.layers}) < len(points.layers):
            raise UnsupportedModelError(
                f"{type(model).__name__}: one module is several of its layers, so what it does in one place cannot be "
                "told from what it does in another; give each place its own copy (copy.deepcopy)"
            )
        check_not_reordered(points.layers)
        self.source, self._labels = batches, {"labels", TOKEN_MASK, ATTENDED, *labels}
        self._model, self._most, self._left = model, most_tokens(model), LeftPadding(model, points)
        self._points, self._checked = points, False
        self._read: list[bytes] = []  # digests of the batches that were read before
        self._states = None if input_of(body_of(model)) == INPUTS[0] else StateMasks(model, points)
        self._table = position_table(model)
        self._rows = {key: position_rows(table) for key, table in _tables(model).items()}
        names, takes_all = arguments_of(body_of(model))
        self._known = None if takes_all else names
        self.tokens: int | None = getattr(batches, "tokens", None)
        self.counted: str | None = getattr(batches, "counted", None)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        number = -1
        for number, given in enumerate(self.source):
            batch: Mapping[str, Any] = given if self._states is None else self._states.added(given, number)
            mask = checked_mask(batch, number) if self._states is None else attended_mask(batch)
            self._compare(given, number)
            if not mask.any():
                continue
            if self._states is None:
                batch = plain_arguments(batch, number, self._labels)
            self._check(batch, number)
            filled = batch
            if self._states is None:
                self._check_length(batch, number)
                filled = self._left.filled(with_decoder_inputs(body_of(self._model), batch), mask, number)
            if not self._checked:
                check_wrapper(self._model, self._points, filled)
                self._checked = True
            yield filled
        if number + 1 < len(self._read):
            raise InputError(
                f"batches: there were {len(self._read)} at the first reading and {number + 1} at the next; they are "
                "read more than once, so pass list(batches)"
            )

    def _compare(self, batch: Mapping[str, Any], number: int) -> None:
        """Raise if a batch differs from that of the same number at an earlier reading."""
        digest = digest_of(batch) if isinstance(batch, Mapping) else b""  # the checks that follow refuse it
        if number == len(self._read):
            self._read.append(digest)
        elif digest != self._read[number]:
            raise InputError(
                f"batches: batch {number} has other tokens than at the first reading; they are read more than once, so "
                "turn off shuffling and random masking, or pass list(batches)"
            )

    def _check(self, batch: Mapping[str, Any], number: int) -> None:
        """Raise if the model cannot run a batch."""
        given = {key for key, value in batch.items() if value is not None} - self._labels
        if self._known is not None and (unknown := given - self._known):
            raise InputError(
                f"batches: batch {number} has {', '.join(sorted(map(str, unknown)))}, which "
                f"{type(body_of(self._model)).__name__} does not take; leave it out"
            )
        for key, rows in self._rows.items():
            ids = batch.get(key)
            if not isinstance(ids, Tensor) or ids.is_floating_point():
                continue
            low, high = (int(end) for end in torch.aminmax(ids))
            if low < 0 or high >= rows:
                raise InputError(
                    f"batches: {key} of batch {number} must be 0 to {rows - 1}, the rows of this model's embedding, "
                    f"got {low if low < 0 else high}; make them with the tokenizer of this model"
                )

    def _check_length(self, batch: Mapping[str, Any], number: int) -> None:
        """Raise if a batch of token ids is longer than the model's table of positions."""
        length = self._length(batch["input_ids"])
        if self._most is not None and batch.get("position_ids") is None and length > self._most:
            raise InputError(
                f"batches: batch {number} has sequences of {length} tokens, and this model has {self._most} positions; "
                f"cut them to {self._most} (max_seq_len)"
            )

    def _length(self, ids: Tensor) -> int:
        """Return the largest number of positions that a sequence takes."""
        table = self._table
        if table is None or table.padding_idx is None or ids.shape[1] > table.num_embeddings:
            return ids.shape[1]
        return int((ids != table.padding_idx).sum(1).max())  # RoBERTa gives padding no position of its own


def _tables(model: nn.Module) -> dict[str, nn.Embedding]:
    """Return the embeddings of a model by the argument that they read."""
    try:
        tables: dict[str, Any] = {"input_ids": model.get_input_embeddings()}  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        tables = {}
    for name, module in model.named_modules():
        if name.endswith("token_type_embeddings"):
            tables["token_type_ids"] = module
    tables["position_ids"] = position_table(model)
    return {key: table for key, table in tables.items() if isinstance(table, nn.Embedding)}
