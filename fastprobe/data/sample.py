"""A sample of the sequences of a stream, independent of their order and their batches."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastprobe.data.batches import grouped, merge, select
from fastprobe.data.checks import content_of, counted_mask
from fastprobe.errors import InputError
from fastprobe.orders.arguments import integer
from fastprobe.runtime.distributed import Ranks

Sequence = tuple[int, dict[str, Any]]
"""(fold, the arguments of the model for one sequence: tensors without their batch dimension, and constants)."""

CONSTANTS = (bool, int, float, str, type(None))
"""Types of arguments that are the same for every sequence."""


class SequenceSample:
    """The ``size`` sequences of a stream whose tokens have the smallest hash.

    The hash is of all tokens but padding, so it does not depend on which of them count. A sequence without tokens that
    count is left out.

    Args:
        size: how many to keep; ``None`` keeps all.
        seed: of the hash. Another seed gives another sample.

    Raises:
        InputError: the seed has more than 64 bits.
    """

    def __init__(self, size: int | None, seed: int = 0):
        seed = integer(seed, "seed")
        if not -(2**63) <= seed < 2**63:
            raise InputError(f"seed: must be a number of 64 bits, got {seed}")
        self.size = size
        self._key = seed.to_bytes(8, "little", signed=True)
        self._heap: list[tuple[int, int, Sequence]] = []  # (-hash, -number, sequence): the largest hash on top
        self._seen = 0

    @classmethod
    def of(cls, sequences: int | str, seed: int) -> SequenceSample:
        """Make the sample that ``score_sequences`` asks for.

        Args:
            sequences: a number, or ``"all"``.
            seed: of the hash.

        Raises:
            InputError: it is neither, or the seed has more than 64 bits.
        """
        if isinstance(sequences, str) and sequences == "all":
            return cls(None, seed)
        if isinstance(sequences, str) or (count := integer(sequences, "score_sequences")) < 0:
            raise InputError(f"score_sequences: must be a number of sequences or 'all', got {sequences!r}")
        return cls(count, seed)

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def tokens(self) -> int:
        """Tokens of the sample that count."""
        return sum(int(counted_mask(tensors).sum()) for _, _, (_, tensors) in self._heap)

    def add(self, batch: Mapping[str, Any], fold: Tensor, first: int | None = None, step: int = 1) -> None:
        """Add the sequences of a batch to the stream.

        Args:
            batch: the arguments of the model; tensors with a leading batch dimension.
            fold: ``(batch,)`` fold of each sequence.
            first: number of the first sequence in the stream; by default the number of those added before.
            step: difference between the numbers of two sequences in succession.
        """
        counts = counted_mask(batch).any(1).tolist()
        content = content_of(batch).cpu()
        given = batch.get("attention_mask")  # padding of the inputs, which may be longer than the states
        mask = given.bool().cpu() if given is not None and given.shape == content.shape else None
        first = self._seen if first is None else first
        self._seen += len(content)
        for row in range(len(content)):
            number = first + step * row
            if self.size == 0 or not counts[row]:
                continue
            inputs = content[row] if mask is None else content[row][mask[row]]
            data = inputs.contiguous().view(torch.uint8).numpy().tobytes()
            digest = hashlib.blake2b(data, digest_size=8, key=self._key).digest()
            key = -int.from_bytes(digest, "little")
            if self.size is not None and len(self._heap) == self.size and key <= self._heap[0][0]:
                continue
            # A tensor of one row, as position_ids may be, belongs to all sequences.
            values: dict[str, Any] = {
                k: v[min(row, len(v) - 1)].cpu() for k, v in batch.items() if isinstance(v, Tensor)
            }
            values |= {k: v for k, v in batch.items() if isinstance(v, CONSTANTS)}
            entry = (key, -number, (int(fold[row]), values))
            if len(self._heap) == self.size:
                heapq.heapreplace(self._heap, entry)
            else:
                heapq.heappush(self._heap, entry)

    def gather_(self, ranks: Ranks) -> None:
        """Replace the sample of each process by that of all of them. A sequence that several have counts once."""
        if ranks.size == 1:
            return
        entries = {entry[:2]: entry for of_process in ranks.gather(self._heap) for entry in of_process}
        kept = sorted(entries.values(), key=lambda entry: entry[:2], reverse=True)[: self.size]
        self._heap = kept[::-1]  # in ascending order, which is a heap

    def batches(self, batch_size: int, tokens: int = 0) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Yield the sample as batches with the fold of each sequence, sorted by fold.

        Args:
            batch_size: most sequences of a batch of one length.
            tokens: a batch with fewer is merged with the next; above 0 only where padding costs nothing.
        """
        of_one_length = [*self._batches_of_one_length(batch_size)]
        folds = iter([fold for _, fold in of_one_length])
        for group in grouped((batch for batch, _ in of_one_length), tokens):
            fold = torch.cat([next(folds) for _ in group])
            order = fold.argsort(stable=True)
            yield select(merge(group), order), fold[order]

    def _batches_of_one_length(self, batch_size: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Yield batches of sequences of one length, with the fold of each sequence."""
        by_length: dict[tuple[tuple[str, Any], ...], list[Sequence]] = {}
        for _, _, (fold, values) in sorted(self._heap, key=lambda entry: entry[:2], reverse=True):
            by_length.setdefault(tuple((k, _kind(v)) for k, v in values.items()), []).append((fold, values))
        for group in by_length.values():
            group.sort(key=lambda sequence: sequence[0])  # so that a batch holds few folds
            for start in range(0, len(group), batch_size):
                part = group[start : start + batch_size]
                yield (
                    {
                        key: torch.stack([values[key] for _, values in part]) if isinstance(first, Tensor) else first
                        for key, first in part[0][1].items()
                    },
                    torch.tensor([fold for fold, _ in part]),
                )


def _kind(value: Any) -> Any:
    """Return what the values of two sequences must share to be in one batch: a shape, or the value itself."""
    return value.shape if isinstance(value, Tensor) else value
