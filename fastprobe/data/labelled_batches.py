"""Batches with a label for each token, made from rows of labelled words as in token classification."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastprobe.data.checks import TOKEN_MASK
from fastprobe.data.documents import checked_text, rows
from fastprobe.data.token_batches import TokenBatches, default_batch_size
from fastprobe.errors import InputError
from fastprobe.orders.arguments import plain_numbers

WORDS = "tokens"
"""The column with the words of a row, as in CoNLL-2003."""
NONE = -100
"""The label of a token without one, as in PyTorch's losses."""
NEEDS_ROWS = "labels need rows of words, from a .jsonl file or a dataset"


class LabelledBatches(TokenBatches):
    """Rows of labelled words as batches of token ids and labels. Every iteration starts anew.

    The words of a row are joined by spaces. As usual in token classification, the first token of a word has the label
    of the word, and the other tokens have none. Rows of more than ``max_seq_len`` tokens are cut.

    Attributes:
        classes: for each column of string labels: label -> class number.

    Yields:
        dicts of ``input_ids``, ``attention_mask`` and every column of labels, each ``(batch, length)`` int64. The label
        of a token without one is -100.

    Raises:
        InputError: the tokenizer or a column's name cannot be used; or, while batches are read, a column is missing or
            does not have one label a word.
    """

    def __init__(self, text: Any, tokenizer: Any, labels: Sequence[str], words: str, **sizes: Any):
        super().__init__(text, tokenizer, text_column=words, **sizes)
        if not tokenizer.is_fast:
            raise InputError("tokenizer: must be a fast one, which says which word a token belongs to; got a slow one")
        for name in labels:
            if name in ("input_ids", "attention_mask", TOKEN_MASK):
                raise InputError(f"labels: {name!r} is an argument of the model; give the column another name")
        self.labels = list(dict.fromkeys(labels))
        self.classes: dict[str, dict[str, int]] = {}
        self._kinds: dict[str, set[type]] = {}

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        chunk: list[dict[str, list[int]]] = []
        empty = True
        for sequence in self._labelled_sequences():
            chunk.append(sequence)
            if len(chunk) == self.batch_size:
                yield self._batch(chunk)
                chunk, empty = [], False
        if chunk:
            yield self._batch(chunk)
        elif empty:
            raise InputError("text: there are no words in it; pass rows with words in them")

    def _batch(self, chunk: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        batch = self._pad([sequence["input_ids"] for sequence in chunk])
        for name in self.labels:
            batch[name] = torch.full_like(batch["input_ids"], NONE)
            for row, sequence in enumerate(chunk):
                batch[name][row, : len(sequence[name])] = torch.tensor(sequence[name])
        return batch

    def _labelled_sequences(self) -> Iterator[dict[str, list[int]]]:
        left, special = self.tokens, len(self.prefix) + len(self.suffix)
        size = self.max_seq_len - special
        for row, place in rows(self.text):
            if not isinstance(row, dict):
                raise InputError(f"{place}: must be a row of columns, got {type(row).__name__}; {NEEDS_ROWS}")
            columns = self._columns(row, place)
            for start in range(0, len(columns["input_ids"]), size):
                if left <= special:
                    return
                piece = {name: ids[start : start + min(size, left - special)] for name, ids in columns.items()}
                left -= len(piece["input_ids"]) + special
                sequence = {"input_ids": [*self.prefix, *piece.pop("input_ids"), *self.suffix]}
                for name, labels in piece.items():
                    sequence[name] = [*[NONE] * len(self.prefix), *labels, *[NONE] * len(self.suffix)]
                yield sequence

    def _columns(self, row: Mapping[str, Any], place: str) -> dict[str, list[int]]:
        """Return the tokens of a row, without special tokens, and their labels."""
        words = _as_list(row.get(self.text_column))
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InputError(
                f"{place}: no list of words in column {self.text_column!r} (it has {', '.join(row)}); "
                "name one with --words"
            )
        joined = checked_text(" ".join(words), place)
        encoded = self.tokenizer(joined, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        word_at = [number for number, word in enumerate(words) for _ in f"{word} "]
        ids: list[int] = encoded["input_ids"]
        # The last character decides: the first one of a byte-level token may be the space before the word.
        word_of = [word_at[end - 1] if end > start else None for start, end in encoded["offset_mapping"]]
        first = {word: at for at, word in reversed([*enumerate(word_of)]) if word is not None}
        columns = {"input_ids": ids}
        for name in self.labels:
            labels = self._labels(row, name, len(words), place)
            columns[name] = [NONE] * len(ids)
            for word, at in first.items():
                columns[name][at] = labels[word]
        return columns

    def _labels(self, row: Mapping[str, Any], name: str, words: int, place: str) -> list[int]:
        labels = _as_list(row.get(name))
        if not isinstance(labels, list):
            raise InputError(f"{place}: no list of labels in column {name!r} (it has {', '.join(row)}); see --labels")
        if len(labels) != words:
            raise InputError(
                f"{place}: {words} words in {self.text_column!r} and {len(labels)} labels in {name!r}; "
                "there must be one label a word"
            )
        kinds = self._kinds.get(name, set()) | {type(label) for label in labels}
        if not (kinds <= {int} or kinds <= {str}):
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise InputError(f"{place}: labels in {name!r} must all be integers or all be strings, got {found}")
        self._kinds[name] = kinds
        if kinds <= {int}:
            return labels
        classes = self.classes.setdefault(name, {})
        return [classes.setdefault(label, len(classes)) for label in labels]


def _as_list(values: Any) -> Any:
    """Return an array, as a row of a table holds it, as a list; other values as they are."""
    return values.tolist() if hasattr(values, "tolist") else values


@plain_numbers
def labelled_batches(
    text: Any,
    tokenizer: Any,
    labels: Sequence[str],
    *,
    words: str = WORDS,
    tokens: int = 100_000,
    max_seq_len: int = 128,
    batch_size: int | None = None,
    skip_first: int = 0,
    skip_special: bool = False,
) -> LabelledBatches:
    """Make batches of token ids and labels from rows of words, for :func:`fastprobe.probe`.

    Args:
        text: a ``Path`` of a ``.jsonl`` file, a ``datasets.Dataset``, dicts, or several of those. A row has a list of
            words and lists of as many labels. Labels are strings or integers; an integer below 0 is no label.
        tokenizer: a fast Hugging Face tokenizer.
        labels: the columns of labels.
        words: the column of words.
        tokens: stop after this many tokens, special tokens included.
        max_seq_len: longest sequence, special tokens included.
        batch_size: sequences a batch; by default as for :func:`fastprobe.token_batches`.
        skip_first: first tokens of each sequence that do not count, as for :func:`fastprobe.token_batches`.
        skip_special: special tokens do not count either.

    Raises:
        InputError: a size or a name cannot be used; or, while batches are read, a row cannot be used.

    Example:
        >>> batches = labelled_batches(Path("conll.jsonl"), tokenizer, ["ner_tags"])  # doctest: +SKIP
        >>> fp.probe(model, batches, tasks=["ner_tags"])  # doctest: +SKIP
    """
    batch_size = default_batch_size(max_seq_len) if batch_size is None else batch_size
    return LabelledBatches(
        text,
        tokenizer,
        labels,
        words,
        tokens=tokens,
        max_seq_len=max_seq_len,
        batch_size=batch_size,
        skip_first=skip_first,
        skip_special=skip_special,
    )
