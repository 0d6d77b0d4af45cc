"""What a probe is to read from states: one class a token, made of the tokens themselves or given in the batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastprobe.data.checks import checked_mask
from fastprobe.errors import InputError

OF_IDS = ("token", "previous", "next", "position")
OF_TEXT = ("word_piece", "sentence")
FREQUENT = 100
"""Tokens that are told apart; all others are one class."""
SENTENCES = 16
"""Sentences of a sequence that are told apart; those after them are in the last class."""


class TokenLabels:
    """Tasks as columns of classes, the same for all batches of a stream.

    * ``token``, ``previous``, ``next``: which of the 100 most frequent tokens the token itself or its neighbour is;
      class 0 is any other, the last class of neighbours is none.
    * ``position``: the place among the tokens that are no padding.
    * ``word_piece``: whether it goes on with a word that an earlier token began.
    * ``sentence``: how many tokens that end a sentence come before it.
    * any other name: what the batches have under that key, ``(batch, length)`` integers; those below 0 are no label.

    Args:
        tasks: which.
        batches: gone through once, for counts; the model is not run.
        tokenizer: what the ids are of; ``word_piece`` and ``sentence`` need it.

    Raises:
        InputError: a task that cannot be made of these batches.
    """

    def __init__(self, tasks: Sequence[str], batches: Iterable[Mapping[str, Any]], tokenizer: Any = None):
        for task in tasks:
            if task in OF_TEXT and tokenizer is None:
                raise InputError(f"tasks: {task} is seen from the text of tokens; pass the tokenizer")
        self.tasks = list(dict.fromkeys(tasks))
        self.given = [task for task in self.tasks if task not in (*OF_IDS, *OF_TEXT)]
        self.counts: dict[str, Tensor] = {}
        pieces, ends = _kinds_of_token(tokenizer) if tokenizer is not None else ((), ())
        self._pieces, self._ends = torch.tensor(pieces, dtype=torch.long), torch.tensor(ends, dtype=torch.long)
        ids, longest, self._classes = torch.zeros(1, dtype=torch.long), 0, dict.fromkeys(self.given, 0)
        for number, batch in enumerate(batches):
            mask = checked_mask(batch, number)
            seen = torch.bincount(batch["input_ids"][mask].cpu())
            longer, shorter = (seen, ids) if len(seen) > len(ids) else (ids, seen)
            longer[: len(shorter)] += shorter
            ids, longest = longer, max(longest, int(mask.sum(1).max()))
            for task in self.given:
                self._classes[task] = max(self._classes[task], int(_given(batch, task, number)[mask].max()) + 1)
        for task, classes in self._classes.items():
            if not classes:
                raise InputError(f"tasks: no token has a label of {task!r}; labels are integers from 0 on")
        self._frequent = torch.zeros(len(ids), dtype=torch.long)
        order = ids.argsort(descending=True, stable=True)[:FREQUENT]
        order = order[ids[order] > 0]
        self._frequent[order] = torch.arange(1, len(order) + 1)
        self._classes |= {"token": len(order) + 1, "previous": len(order) + 2, "next": len(order) + 2}
        self._classes |= {"position": longest, "word_piece": 2, "sentence": SENTENCES}

    def classes(self, task: str) -> int:
        """How many classes a task has."""
        return self._classes[task]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The class of every token in every task, ``(batch, length)`` int64; -1 where there is none."""
        mask, ids = checked_mask(batch, 0), batch["input_ids"]
        place = mask.long().cumsum(1) - 1
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
        return {task: torch.where(mask, made[task], -1) for task in self.tasks}


def _given(batch: Mapping[str, Any], task: str, number: int) -> Tensor:
    labels = batch.get(task)
    if not isinstance(labels, Tensor) or labels.shape != batch["input_ids"].shape or labels.is_floating_point():
        raise InputError(
            f"tasks: {task!r} is not one of {', '.join((*OF_IDS, *OF_TEXT))}, and batch {number} has no (batch, "
            "length) tensor of integers under that key"
        )
    return labels


def _kinds_of_token(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of the tokens that go on with a word, and of those that end a sentence."""
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_ids)
    mark = max(("##", "Ġ", "▁"), key=lambda mark: sum(token.startswith(mark) for token in vocabulary))
    pieces, ends = [], []
    for token, index in vocabulary.items():
        goes_on = token.startswith(mark) == (mark == "##")  # the others mark the beginning of a word
        if goes_on and index not in special:
            pieces.append(index)
        if token.lstrip("Ġ▁").removeprefix("##") in (".", "!", "?"):
            ends.append(index)
    return sorted(pieces), sorted(ends)
