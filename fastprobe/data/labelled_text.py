"""From rows of labelled words, as token classification has them, to batches with a label a token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastprobe.data.token_batches import TokenBatches, default_batch_size, rows
from fastprobe.errors import InputError

WORDS = "tokens"
"""Where the words of a row are, as in CoNLL-2003 and what is built like it."""
NONE = -100
"""The label of a token that has none, as in PyTorch's losses."""
ROWS = "labels go with rows of words, from a .jsonl file or a dataset"


class LabelledBatches(TokenBatches):
    """Rows of words with labels, as batches of ids with columns of labels; can be gone through any number of times.

    A row is its words joined by spaces. The first token of a word has its label and the others have none, as is usual
    in token classification. Rows of more than ``max_seq_len`` tokens are cut.

    Yields:
        dicts of ``input_ids``, ``attention_mask`` and every column of labels, each ``(batch, length)`` int64, labels
        -100 where a token has none. ``classes`` has what a class is called, where labels are strings.

    Raises:
        InputError: when gone through: a column is missing, or has not one label a word.
    """

    def __init__(self, text: Any, tokenizer: Any, labels: Sequence[str], words: str, **sizes: Any):
        super().__init__(text, tokenizer, text_column=words, **sizes)
        if not tokenizer.is_fast:
            raise InputError("labels: this tokenizer does not say which token is of which word; a fast one does")
        for name in labels:
            if name in ("input_ids", "attention_mask"):
                raise InputError(f"labels: {name!r} is what a model takes; give the column another name")
        self.labels = list(dict.fromkeys(labels))
        self.classes: dict[str, dict[str, int]] = {}
        self._kinds: dict[str, set[type]] = {}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        chunk: list[dict[str, list[int]]] = []
        empty = True
        for sequence in self._labelled_sequences():
            chunk.append(sequence)
            if len(chunk) == self.batch_size:
                yield self._together(chunk)
                chunk, empty = [], False
        if chunk:
            yield self._together(chunk)
        elif empty:
            raise InputError("text: there are no words in it; pass rows with words in them")

    def _together(self, chunk: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        batch = self._pad([sequence["input_ids"] for sequence in chunk])
        for name in self.labels:
            batch[name] = torch.full_like(batch["input_ids"], NONE)
            for row, sequence in enumerate(chunk):
                batch[name][row, : len(sequence[name])] = torch.tensor(sequence[name])
        return batch

    def _labelled_sequences(self) -> Iterator[dict[str, list[int]]]:
        left, special = self.tokens, len(self.prefix) + len(self.suffix)
        size = self.max_seq_len - special
        for row, where in rows(self.text):
            if not isinstance(row, dict):
                raise InputError(f"{where}: not a row of columns but {type(row).__name__}; {ROWS}")
            columns = self._columns(row, where)
            for start in range(0, len(columns["input_ids"]), size):
                if left <= special:
                    return
                piece = {name: ids[start : start + min(size, left - special)] for name, ids in columns.items()}
                left -= len(piece["input_ids"]) + special
                sequence = {"input_ids": [*self.prefix, *piece.pop("input_ids"), *self.suffix]}
                for name, labels in piece.items():
                    sequence[name] = [*[NONE] * len(self.prefix), *labels, *[NONE] * len(self.suffix)]
                yield sequence

    def _columns(self, row: Mapping[str, Any], where: str) -> dict[str, list[int]]:
        """The tokens of a row without special ones, and their labels."""
        words = row.get(self.text_column)
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InputError(
                f"{where}: no list of words in column {self.text_column!r} (it has {', '.join(row)}); "
                "name one with --words"
            )
        encoded = self.tokenizer(" ".join(words), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        word_at = [number for number, word in enumerate(words) for _ in f"{word} "]
        ids: list[int] = encoded["input_ids"]
        # By its last character: the first of a byte-level token may be the space before the word.
        word_of = [word_at[end - 1] if end > start else None for start, end in encoded["offset_mapping"]]
        first = {word: at for at, word in reversed([*enumerate(word_of)]) if word is not None}
        columns = {"input_ids": ids}
        for name in self.labels:
            labels = self._labels(row, name, len(words), where)
            columns[name] = [NONE] * len(ids)
            for word, at in first.items():
                columns[name][at] = labels[word]
        return columns

    def _labels(self, row: Mapping[str, Any], name: str, words: int, where: str) -> list[int]:
        labels = row.get(name)
        if not isinstance(labels, list):
            raise InputError(f"{where}: no list of labels in column {name!r} (it has {', '.join(row)}); see --labels")
        if len(labels) != words:
            raise InputError(
                f"{where}: {words} words in {self.text_column!r} and {len(labels)} labels in {name!r}; "
                "there must be one a word"
            )
        kinds = self._kinds.get(name, set()) | {type(label) for label in labels}
        if not (kinds <= {int} or kinds <= {str}):
            found = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise InputError(f"{where}: labels in {name!r} must all be integers or all be strings, got {found}")
        self._kinds[name] = kinds
        if kinds <= {int}:
            return labels
        classes = self.classes.setdefault(name, {})
        return [classes.setdefault(label, len(classes)) for label in labels]


def labelled_batches(
    text: Any,
    tokenizer: Any,
    labels: Sequence[str],
    *,
    words: str = WORDS,
    tokens: int = 100_000,
    max_seq_len: int = 128,
    batch_size: int | None = None,
) -> LabelledBatches:
    """Batches of token ids and labels from rows of words, for :func:`fastprobe.probe`.

    Args:
        text: a ``Path`` of a ``.jsonl`` file, a ``datasets.Dataset``, dicts, or several of those. A row has a list of
            words, and lists of as many labels: integers, those below 0 being none, or strings.
        tokenizer: a fast Hugging Face tokenizer.
        labels: the columns of labels.
        words: the column of words.
        tokens: stop when this many tokens have come, special tokens included.
        max_seq_len: longest sequence, special tokens included.
        batch_size: sequences a batch; by default as for :func:`fastprobe.token_batches`.

    Raises:
        InputError: a size or name cannot be used, now; or rows cannot, when the batches are gone through.

    Example:
        >>> batches = labelled_batches(Path("conll.jsonl"), tokenizer, ["ner_tags"])  # doctest: +SKIP
        >>> fp.probe(model, batches, tasks=["ner_tags"])  # doctest: +SKIP
    """
    batch_size = default_batch_size(max_seq_len) if batch_size is None else batch_size
    return LabelledBatches(
        text, tokenizer, labels, words, tokens=tokens, max_seq_len=max_seq_len, batch_size=batch_size
    )
