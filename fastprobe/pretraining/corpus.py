"""Training text as token sequences, with held-out sequences and the unigram loss that a model must beat."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastprobe.data.documents import documents
from fastprobe.data.token_batches import special_tokens
from fastprobe.data.unknown_tokens import UnknownTokens
from fastprobe.errors import InputError
from fastprobe.pretraining.documentation import documentation
from fastprobe.pretraining.masking import mask_tokens
from fastprobe.pretraining.tokenizer import train_tokenizer

HELD_OUT_EVERY = 20
"""Interval of held-out sequences: every 20th."""
HELD_OUT_MOST = 512
"""Largest number of held-out sequences."""
PIECES = 256
"""Pieces of text in one call of the tokenizer, which processes them in parallel."""


@dataclass(frozen=True)
class Corpus:
    """Token ids of a text in sequences of equal length. Documents follow each other without padding."""

    train: Tensor
    """``(sequences, max_seq_len)`` int32."""
    held_out: Tensor
    """``(sequences, max_seq_len)`` int64, with 15 % of the tokens replaced by the mask token."""
    labels: Tensor
    """``(sequences, max_seq_len)`` int64: the ids of the masked tokens of ``held_out``, -100 elsewhere."""
    tokenizer: Any
    """The Hugging Face tokenizer that made the ids."""

    @classmethod
    def read(
        cls,
        text: Any,
        tokenizer: Any = None,
        *,
        vocab_size: int,
        max_seq_len: int,
        tokens: int | None,
        text_column: str,
        seed: int,
    ) -> Corpus:
        """Build a corpus as :meth:`of` does, with defaults for the text and the tokenizer.

        Args:
            text: as for :func:`fastprobe.token_batches`; ``None`` takes :func:`documentation`.
            tokenizer: a tokenizer with a mask token; ``None`` trains one on the text.
            vocab_size: vocabulary size of a trained tokenizer.
            max_seq_len: tokens of a sequence, including special tokens.
            tokens: read at most this many tokens; ``None`` reads all.
            text_column: name of the text column of ``.jsonl`` files and datasets.
            seed: seed of the masking.

        Raises:
            InputError: the text has fewer than 20 sequences, or the tokenizer has no mask token or does not know most
                of the text.
        """
        source = list(documentation()) if text is None else text
        tokenizer = train_tokenizer(source, vocab_size, text_column) if tokenizer is None else tokenizer
        if tokenizer.mask_token_id is None:
            raise InputError("tokenizer: it has no mask token; pass one that has, or none to train one on the text")
        return cls.of(source, tokenizer, max_seq_len=max_seq_len, tokens=tokens, text_column=text_column, seed=seed)

    @classmethod
    def of(
        cls, text: Any, tokenizer: Any, *, max_seq_len: int, tokens: int | None, text_column: str, seed: int
    ) -> Corpus:
        """Tokenise a text and hold out one sequence in 20, but at most 512.

        Args:
            text: as for :func:`fastprobe.token_batches`.
            tokenizer: a tokenizer with a mask token.
            max_seq_len: tokens of a sequence, including special tokens.
            tokens: read at most this many tokens; ``None`` reads all.
            text_column: name of the text column of ``.jsonl`` files and datasets.
            seed: seed of the masking.

        Raises:
            InputError: the text has fewer than 20 sequences, ``max_seq_len`` has no room for text, or most tokens are
                the tokenizer's unknown token.
        """
        prefix, suffix = special_tokens(tokenizer)
        stream = itertools.islice(_token_stream(text, tokenizer, suffix[-1:], text_column), tokens)
        ids = torch.from_numpy(np.fromiter(stream, dtype=np.int32))
        unknown = UnknownTokens(tokenizer)
        unknown.add(ids)
        unknown.check()
        body = max_seq_len - len(prefix) - len(suffix)
        if body < 1:
            raise InputError(f"max_seq_len: {max_seq_len} leaves no room between the special tokens")
        count = len(ids) // body
        if count < HELD_OUT_EVERY:
            raise InputError(
                f"text: {len(ids)} tokens make {count} sequences of {max_seq_len}, but {HELD_OUT_EVERY} are needed; "
                "pass more text or a smaller max_seq_len"
            )
        ends = [torch.tensor(end, dtype=torch.int32).expand(count, -1) for end in (prefix, suffix)]
        sequences = torch.cat([ends[0], ids[: count * body].view(count, body), ends[1]], 1)
        held_out = torch.arange(count) % max(HELD_OUT_EVERY, -(-count // HELD_OUT_MOST)) == HELD_OUT_EVERY - 1
        masked, labels = mask_tokens(sequences[held_out].long(), tokenizer, seed, mask_only=True)
        return cls(sequences[~held_out], masked, labels, tokenizer)

    def held_out_text(self) -> Iterator[str]:
        """Yield the held-out sequences as text, without their first and last words, which may be incomplete."""
        for ids in torch.where(self.labels == -100, self.held_out, self.labels).tolist():
            words = self.tokenizer.decode(ids, skip_special_tokens=True)
            yield words.partition(" ")[2].rpartition(" ")[0]

    def unigram_loss(self) -> float:
        """Return the cross-entropy, in nats, of predicting each masked token by its frequency in the training text.

        loss = -mean log p(t),   p(t) = (count(t) + 1) / (tokens + vocabulary)

        The mean is over the masked tokens t of the held-out sequences.
        """
        size = len(self.tokenizer)
        counts = torch.bincount(self.train.flatten().long(), minlength=size).double()
        counts[self.tokenizer.all_special_ids] = 0  # special tokens are never masked
        p = (counts + 1) / (counts.sum() + size)
        return -float(p[self.labels[self.labels != -100]].log().mean())


def _token_stream(text: Any, tokenizer: Any, separator: list[int], text_column: str) -> Iterator[int]:
    """Yield the token ids of all documents, with a special token after each document."""
    pieces = _mark_last(documents(text, text_column))
    while chunk := list(itertools.islice(pieces, PIECES)):
        encoded = tokenizer([piece for piece, _ in chunk], add_special_tokens=False, verbose=False)["input_ids"]
        for ids, (_, last) in zip(encoded, chunk, strict=True):
            yield from ids
            if last:
                yield from separator


def _mark_last(texts: Iterable[Iterable[str]]) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of all documents, each with True if it is the last piece of its document."""
    for document in texts:
        pieces = iter(document)
        piece = next(pieces, None)
        while piece is not None:
            following = next(pieces, None)
            yield piece, following is None
            piece = following
