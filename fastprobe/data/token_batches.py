"""Batches of token ids, made from text."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastprobe.data.batches import batch_tokens
from fastprobe.data.checks import TOKEN_MASK
from fastprobe.data.documents import documents
from fastprobe.data.unknown_tokens import known_tokens
from fastprobe.errors import InputError
from fastprobe.orders.arguments import plain_numbers


class TokenBatches:
    """Text as batches of token ids, tokenised while they are read. Every iteration starts anew.

    Each document is cut into sequences of at most ``max_seq_len`` tokens, special tokens included. Nothing is dropped:
    the last sequence of a document may be shorter and is padded.

    Attributes:
        counted: which tokens count, as a text; ``None`` if all do.

    Yields:
        dicts of ``input_ids`` and ``attention_mask``, each ``(batch, length)`` int64, and of ``token_mask`` if some
        tokens do not count.

    Raises:
        InputError: a size is out of range; or, while batches are read, the text has no tokens or the tokenizer does not
            know most of them.
    """

    def __init__(
        self,
        text: Any,
        tokenizer: Any,
        *,
        tokens: int,
        max_seq_len: int,
        batch_size: int,
        text_column: str,
        skip_first: int = 0,
        skip_special: bool = False,
    ):
        if tokens < 1:
            raise InputError(f"tokens: must be 1 or more, got {tokens}")
        if batch_size < 1:
            raise InputError(f"batch_size: must be 1 or more, got {batch_size}")
        self.prefix, self.suffix = special_tokens(tokenizer)
        special = len(self.prefix) + len(self.suffix)
        if max_seq_len <= special:
            raise InputError(
                f"max_seq_len: must be more than the {special} special tokens of this tokenizer, got {max_seq_len}"
            )
        if not 0 <= skip_first < max_seq_len:
            raise InputError(f"skip_first: must be 0 to {max_seq_len - 1}, less than max_seq_len, got {skip_first}")
        self._skip_first, self._skipped = skip_first, torch.tensor(tokenizer.all_special_ids if skip_special else [])
        skips = {"skip_first": skip_first, "skip_special": skip_special}
        self.counted = ", ".join(f"{name}={value}" for name, value in skips.items() if value) or None
        self.text, self.tokenizer, self.tokens = text, tokenizer, tokens
        self.max_seq_len, self.batch_size, self.text_column = max_seq_len, batch_size, text_column

    def up_to(self, tokens: int) -> TokenBatches:
        """Return the batches of the same text that end after another number of tokens."""
        other = copy.copy(self)
        other.tokens = tokens
        return other

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return known_tokens(self._batches(), self.tokenizer)

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        sequences = self._sequences()
        empty = True
        while chunk := list(itertools.islice(sequences, self.batch_size)):
            empty = False
            yield self._pad(chunk)
        if empty:
            raise InputError("text: there are no tokens in it; pass a text with words in it")

    def _sequences(self) -> Iterator[list[int]]:
        """Yield sequences of ids until the budget of tokens is spent. The last sequence is cut to what is left."""
        left = self.tokens
        special = len(self.prefix) + len(self.suffix)
        for pieces in documents(self.text, self.text_column):
            for ids in _chunks(self._encode(pieces), self.max_seq_len - special):
                if left <= special:
                    return
                sequence = [*self.prefix, *ids[: left - special], *self.suffix]
                yield sequence
                left -= len(sequence)

    def _encode(self, pieces: Iterable[str]) -> Iterator[int]:
        for piece in pieces:
            yield from self.tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]

    def _pad(self, sequences: list[list[int]]) -> dict[str, Tensor]:
        length = max(map(len, sequences))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.full((len(sequences), length), pad, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.tensor(sequence)
            mask[row, : len(sequence)] = 1
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.counted:
            counts = torch.where(torch.isin(ids, self._skipped), 0, mask)
            counts[:, : self._skip_first] = 0
            batch[TOKEN_MASK] = counts
        return batch


@plain_numbers
def token_batches(
    text: Any,
    tokenizer: Any,
    *,
    tokens: int = 100_000,
    max_seq_len: int = 128,
    batch_size: int | None = None,
    text_column: str = "text",
    skip_first: int = 0,
    skip_special: bool = False,
) -> TokenBatches:
    """Make batches of token ids from text, a file, or a dataset.

    Args:
        text: a string, a ``Path`` (``.txt`` or ``.jsonl``), a ``datasets.Dataset``, a data frame, or an iterable of
            those and of dicts with a ``text_column``. Each string is one document.
        tokenizer: a Hugging Face tokenizer.
        tokens: stop after this many tokens, special tokens included.
        max_seq_len: longest sequence, special tokens included.
        batch_size: sequences a batch; by default :func:`default_batch_size` for a CPU.
        text_column: the column of a ``.jsonl`` line, of a dataset's row or of a data frame that holds its text.
        skip_first: the first tokens of each sequence that do not count, special tokens included. The model reads them;
            they enter no number.
        skip_special: special tokens of the tokenizer (its ``all_special_ids``) do not count either.

    Raises:
        InputError: a size is out of range; or, while batches are read, there is no text, a file is not UTF-8, a row has
            no text, or most tokens are the tokenizer's unknown token.
    """
    batch_size = default_batch_size(max_seq_len) if batch_size is None else batch_size
    return TokenBatches(
        text,
        tokenizer,
        tokens=tokens,
        max_seq_len=max_seq_len,
        batch_size=batch_size,
        text_column=text_column,
        skip_first=skip_first,
        skip_special=skip_special,
    )


def default_batch_size(max_seq_len: int, device: str = "cpu") -> int:
    """Return the sequences a batch for a user who names no number, by type of the model's device."""
    return max(1, batch_tokens(device) // max(1, max_seq_len))


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the ids that a tokenizer puts before and after a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
    if all(mask):  # the tokenizer does not know "a"
        return [], []
    first, last = mask.index(0), len(mask) - mask[::-1].index(0)
    return ids[:first], ids[last:]


def _chunks(ids: Iterator[int], size: int) -> Iterator[list[int]]:
    while chunk := list(itertools.islice(ids, size)):
        yield chunk
