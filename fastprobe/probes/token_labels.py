"""Labels that a probe reads from states: one class a token, computed from the tokens or given in the batches."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastprobe.data.checks import attended_mask, counted_mask
from fastprobe.data.shares import Shares
from fastprobe.errors import InputError
from fastprobe.runtime.distributed import Ranks

OF_IDS = ("token", "previous", "next", "position")
OF_TEXT = ("word_piece", "sentence")
FREQUENT = 100
"""Tokens that have a class each; all others share one class."""
SENTENCES = 16
"""Classes of sentences; later sentences of a sequence are in the last one."""


class TokenLabels:
    """Tasks as columns of classes, the same for all batches of a stream.

    * ``token``, ``previous``, ``next``: the token itself or its neighbour, one class for each of the 100 most frequent
      tokens. Class 0 is any other token. The last class of ``previous`` and ``next`` is a missing neighbour.
    * ``position``: the position among the tokens that are not padding.
    * ``word_piece``: 1 for a token that continues a word, 0 for any other.
    * ``sentence``: the number of earlier tokens that end a sentence.
    * any other name: the values of that key in the batches, ``(batch, length)`` integers; those below 0 are no label.

    Args:
        tasks: names of the tasks.
        batches: read once, for counts. The model does not run.
        tokenizer: of the ids; needed by ``word_piece`` and ``sentence``.

    Raises:
        InputError: the batches do not have the labels of a task, or it needs a tokenizer.
    """

    def __init__(self, tasks: Sequence[str], batches: Iterable[Mapping[str, Any]], tokenizer: Any = None):
        for task in tasks:
            if task in OF_TEXT and tokenizer is None:
                raise InputError(f"tasks: {task} needs the text of tokens; pass the tokenizer")
        self.tasks = list(dict.fromkeys(tasks))
        self.given = [task for task in self.tasks if task not in (*OF_IDS, *OF_TEXT)]
        self.counts: dict[str, Tensor] = {}
        pieces, ends = _kinds_of_token(tokenizer) if tokenizer is not None else ((), ())
        self._pieces, self._ends = torch.tensor(pieces, dtype=torch.long), torch.tensor(ends, dtype=torch.long)
        ids, longest, self._classes = torch.zeros(1, dtype=torch.long), 0, dict.fromkeys(self.given, 0)
        ranks = Ranks.here()
        for share in Shares(batches, ranks).rounds():
            for batch in share.batches:
                mask = counted_mask(batch)
                self._check_ids(batch, share.number)
                if "input_ids" in batch:
                    ids = _added(ids, torch.bincount(batch["input_ids"][mask].cpu()))
                longest = max(longest, _largest(_places(batch), mask) + 1)
                for task in self.given:
                    largest = _largest(_given(batch, task, share.number), mask)
                    self._classes[task] = max(self._classes[task], largest + 1)
        counts, lengths, found = zip(*ranks.gather((ids, longest, self._classes)), strict=True)
        ids, longest = functools.reduce(_added, counts), max(lengths)
        self._classes = {task: max(of_process[task] for of_process in found) for task in self.given}
        for task, classes in self._classes.items():
            if not classes:
                raise InputError(f"tasks: no token has a label of {task!r}; labels are integers from 0 on")
        self._frequent = torch.zeros(len(ids) + 1, dtype=torch.long)  # the last one is for all larger ids
        order = ids.argsort(descending=True, stable=True)[:FREQUENT]
        order = order[ids[order] > 0]
        self._frequent[order] = torch.arange(1, len(order) + 1)
        self._classes |= {"token": len(order) + 1, "previous": len(order) + 2, "next": len(order) + 2}
        self._classes |= {"position": longest, "word_piece": 2, "sentence": SENTENCES}

    def _check_ids(self, batch: Mapping[str, Any], number: int) -> None:
        """Raise if a task needs token ids and a batch has none."""
        needs = [task for task in self.tasks if task not in self.given and task != "position"]
        if needs and "input_ids" not in batch:
            raise InputError(
                f"tasks: {needs[0]} needs input_ids, and batch {number} has none; name position, or keys with labels"
            )

    def classes(self, task: str) -> int:
        """Return the number of classes of a task."""
        return self._classes[task]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the class of every token by task, ``(batch, length)`` int64; -1 for none, or if it does not count."""
        mask, place = attended_mask(batch), _places(batch)
        ids = batch.get("input_ids", torch.zeros_like(place))
        kind = self._frequent.to(ids.device)[ids.clamp(max=len(self._frequent) - 1)]
        none = torch.full_like(kind[:, :1], self._classes["next"] - 1)
        made = {
            "token": kind,
            "previous": torch.where(place > 0, torch.cat([none, kind[:, :-1]], 1), none),
            "next": torch.where(place < mask.sum(1, keepdim=True) - 1, torch.cat([kind[:, 1:], none], 1), none),
            "position": place,
            "word_piece": torch.isin(ids, self._pieces.to(ids.device)).long(),
        }
        ended = (torch.isin(ids, self._ends.to(ids.device)) & mask).long()
        made["sentence"] = (ended.cumsum(1) - ended).clamp(max=SENTENCES - 1)
        made |= {task: _given(batch, task, 0).to(ids.device).clamp(min=-1) for task in self.given}
        return {task: torch.where(counted_mask(batch), made[task], -1) for task in self.tasks}


def _places(batch: Mapping[str, Any]) -> Tensor:
    """Return the position of every token among those that are not padding, ``(batch, length)`` int64."""
    return attended_mask(batch).long().cumsum(1) - 1


def _largest(values: Tensor, mask: Tensor) -> int:
    """Return the largest value at the tokens that count, -1 if none does."""
    return int(values[mask].max()) if mask.any() else -1


def _added(one: Tensor, other: Tensor) -> Tensor:
    """Return the sum of two vectors of counts; missing counts are zero."""
    longer, shorter = (one, other) if len(one) > len(other) else (other, one)
    longer = longer.clone()
    longer[: len(shorter)] += shorter
    return longer


def _given(batch: Mapping[str, Any], task: str, number: int) -> Tensor:
    """Return the labels that a batch has for a task."""
    labels = batch.get(task)
    if not isinstance(labels, Tensor) or labels.shape != attended_mask(batch).shape or labels.is_floating_point():
        raise InputError(
            f"tasks: {task!r} is not one of {', '.join((*OF_IDS, *OF_TEXT))}, and batch {number} has no (batch, "
            "length) tensor of integers under that key"
        )
    return labels.long()


def _kinds_of_token(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids of tokens that continue a word, and of tokens that end a sentence."""
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    mark = max(("##", "Ġ", "▁"), key=lambda mark: sum(token.startswith(mark) for token in vocabulary))
    pieces, ends = [], []
    for token, index in vocabulary.items():
        continues = token.startswith(mark) == (mark == "##")  # other marks are at the beginning of a word
        if continues and index not in special:
            pieces.append(index)
        if token.lstrip("Ġ▁").removeprefix("##") in (".", "!", "?"):
            ends.append(index)
    return sorted(pieces), sorted(ends)
