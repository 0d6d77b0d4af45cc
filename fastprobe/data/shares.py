"""Batches shared out among processes, with the numbers that their sequences have in the whole stream."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastprobe.data.batches import Batch, select
from fastprobe.data.checks import INPUTS, TOKEN_MASK, attended_mask, check_some_count, counted_mask
from fastprobe.data.splits import REMEDY, split_of
from fastprobe.errors import InputError
from fastprobe.runtime.distributed import Ranks

COUNTED = "counted"
"""Entry of a configuration that says which tokens count, and attribute of batches that know it."""
FIRST_MASK = "first_token_mask"
"""Entry of a configuration with a digest of the ``token_mask`` of the first batch, if it is a user's own."""
Ends = Callable[[int, int, int], bool]
"""Function that ends a round: see :meth:`Shares.rounds`."""


class Share(NamedTuple):
    """The part of a round that one process takes. All processes take part in every round, some with no batch."""

    batches: list[Batch]
    first: int
    """Number of the first sequence in the stream of all processes."""
    step: int
    """Difference between the numbers of two sequences in succession."""
    number: int
    """Number of the first batch."""
    tokens: int
    """Tokens of all processes in this round."""
    opens: bool
    """True in the first round, which has the first batches and no others; in later ones until some tokens count."""
    sequences: int
    """Sequences of all processes in the rounds up to this one."""
    batches_done: int
    """Batches of all processes in the rounds up to this one."""


class _Counts(NamedTuple):
    sequences: int
    tokens: int
    counted: int
    batches: int
    digest: bytes


class Shares:
    """Batches of a user, shared out among processes in rounds.

    If every process has all batches, a process takes every n-th group of them, for n processes. If they are split
    already, it takes its part. The first round has one group only, in one process, so that what the first rows decide
    is known before the others begin; so have the next ones while no token counts.

    Args:
        batches: read once.
        ranks: the processes.

    Attributes:
        head: the first batch of all processes, the same in each.
        stream: all batches that this process reads, for :meth:`rounds`.
        config: entries of a configuration that a resumed run must agree on: what the numbers of sequences depend on,
            and which tokens count.
        counted: the entry of a result's configuration that says which tokens count; empty if all do.

    Raises:
        InputError: there are no batches, or the processes have different ones that are not split.
    """

    def __init__(self, batches: Iterable[Batch], ranks: Ranks):
        self._ranks, self._split = ranks, split_of(batches, ranks)
        stream = iter(batches)
        head = next(stream, None)
        if self._split is None:
            if ranks.size > 1:
                ranks.agree("batches", _digest([head] if head else []), REMEDY)
            self._leader, found = 0, head
        else:
            heads = ranks.gather(head and {k: v.cpu() if isinstance(v, Tensor) else v for k, v in head.items()})
            self._leader, found = next(((r, one) for r, one in enumerate(heads) if one is not None), (0, None))
        if found is None:
            raise InputError("batches: there are none")
        self.head: Batch = found
        self.stream: Iterator[Batch] = stream if head is None else itertools.chain([head], stream)
        self.counted = _counted(batches, found)
        self.config: dict[str, Any] = self.counted | _first_mask(self.counted, found)
        if self._split is not None:
            self.config["split_among"] = ranks.size
        self._mine = 0  # sequences of this process in the rounds that have ended

    @property
    def are_split(self) -> bool:
        """True if the batches were split among the processes already."""
        return self._split is not None

    def rounds(self, groups: Iterable[Sequence[Batch]] | None = None, ends: Ends | None = None) -> Iterator[Share]:
        """Yield the share of this process in every round.

        Args:
            groups: the batches of ``stream`` in groups that run together; by default each alone.
            ends: returns True if a round ends after a group, from the batches up to it, the tokens before it and the
                tokens with it. Not asked if the batches were split already.
        """
        left = iter(groups if groups is not None else ([batch] for batch in self.stream))
        opens, sequences, done, counted, read = True, 0, 0, 0, 0
        while True:
            round_ends = None if ends is None else _round_end(ends, done, read)
            mine, seen = self._next(left, opens, round_ends)
            tokens = sum(int(attended_mask(batch).sum()) for batch in mine)
            of_mine = sum(int(counted_mask(batch).sum()) for batch in mine)
            counts = _Counts(_sequences(mine), tokens, of_mine, len(mine), seen)
            everyone = self._ranks.gather(counts)
            before = everyone[: self._ranks.rank]
            if other := next((rank for rank, one in enumerate(everyone) if one.digest != everyone[0].digest), 0):
                raise InputError(
                    f"batches: must be the same in all processes, but processes 0 and {other} read different ones from "
                    f"batch {done} on; {REMEDY}"
                )
            counted += sum(one.counted for one in everyone)
            if not any(one.batches for one in everyone):
                check_some_count(counted, sequences)
                return
            yield Share(
                mine,
                sequences + sum(one.sequences for one in before) if self._by_rounds else self._number(),
                1 if self._split is None else self._split.step,
                done + sum(one.batches for one in before),
                sum(one.tokens for one in everyone),
                opens,
                sequences := sequences + sum(one.sequences for one in everyone),
                done := done + sum(one.batches for one in everyone),
            )
            self._mine += counts.sequences
            read += sum(one.tokens for one in everyone)
            opens = self._split is None and not counted

    @property
    def _by_rounds(self) -> bool:
        return self._split is None or self._split.start is None

    def _number(self) -> int:
        assert self._split is not None
        assert self._split.start is not None
        return self._split.start + self._mine * self._split.step

    def _next(
        self, left: Iterator[Sequence[Batch]], opens: bool, round_ends: Callable[[Sequence[Batch]], bool] | None
    ) -> tuple[list[Batch], bytes]:
        """Return the next batches of this process, and a digest of those that all processes read."""
        rank, size = self._ranks.rank, self._ranks.size
        if self._split is None:
            dealt = []
            for group in itertools.islice(left, 1 if opens else size):
                dealt.append(group)
                if round_ends is not None and round_ends(group):
                    break
            mine = list(dealt[rank]) if rank < len(dealt) else []
            return mine, b"" if size == 1 else _digest([batch for group in dealt for batch in group])
        if opens and rank != self._leader:
            return [], b""
        return self._without_repeats(list(next(left, []))), b""

    def _without_repeats(self, batches: list[Batch]) -> list[Batch]:
        """Return batches without the sequences that a sampler has repeated to fill up, which are the last ones."""
        assert self._split is not None
        if self._split.stop is None:
            return batches
        room = len(range(self._number(), self._split.stop, self._split.step))
        kept = []
        for batch in batches:
            count = len(attended_mask(batch))
            if min(count, room) > 0:
                kept.append(batch if count <= room else select(batch, torch.arange(room)))
            room -= count
        return kept


def _round_end(ends: Ends, batches: int, tokens: int) -> Callable[[Sequence[Batch]], bool]:
    """Return a function that says if a round ends after a group. It counts on from the batches and tokens so far."""

    def round_ends(group: Sequence[Batch]) -> bool:
        nonlocal batches, tokens
        before = tokens
        batches += len(group)
        tokens += sum(int(attended_mask(batch).sum()) for batch in group)
        return ends(batches, before, tokens)

    return round_ends


def _counted(batches: Any, head: Batch) -> dict[str, Any]:
    """Return the entry of a configuration that says which tokens count; empty if all do."""
    named = getattr(batches, COUNTED, None) or (TOKEN_MASK if head.get(TOKEN_MASK) is not None else None)
    return {COUNTED: named} if named else {}


def _first_mask(counted: dict[str, Any], head: Batch) -> dict[str, str]:
    """Return the entry of a configuration that tells one ``token_mask`` of a user from another."""
    if counted.get(COUNTED) != TOKEN_MASK:
        return {}
    mask = head[TOKEN_MASK].bool().cpu().contiguous()
    return {FIRST_MASK: hashlib.blake2b(mask.numpy().tobytes(), digest_size=8).hexdigest()}


def _sequences(batches: Iterable[Batch]) -> int:
    return sum(len(attended_mask(batch)) for batch in batches)


def _digest(batches: Iterable[Batch]) -> bytes:
    """Return a digest of the shapes, ids and masks of batches."""
    found = hashlib.blake2b(digest_size=16)
    for batch in batches:
        for key in (*INPUTS, "attention_mask", TOKEN_MASK):
            if batch.get(key) is None:
                continue
            value = batch[key].cpu().contiguous()
            found.update(repr((tuple(value.shape), str(value.dtype))).encode())
            found.update(value.view(torch.uint8).numpy().tobytes())
    return found.digest()
