"""Text as sequences to train on, sequences held out, and what a model must beat: the frequencies of the tokens."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastprobe.data.demo import demo_text
from fastprobe.data.documents import documents
from fastprobe.data.token_batches import special_tokens
from fastprobe.errors import InputError

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
HELD_OUT_EVERY = 20
HELD_OUT_MOST = 512
PIECES = 256
"""Pieces of text that are tokenised at a time, in parallel."""


def train_tokenizer(text: Any, vocab_size: int, text_column: str = "text") -> Any:
    """A lower-case byte-level BPE tokenizer with BERT's special tokens, trained on a text; same text, same tokenizer.

    Not WordPiece: its trainer in the library tokenizers numbers the pieces in another order in every process.

    Args:
        text: as for :func:`fastprobe.token_batches`.
        vocab_size: most tokens, special ones and the 256 bytes included; a short text has fewer.
        text_column: where the text of a row is.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    spaces = normalizers.Replace(Regex(r"\s+"), " ")  # a layout by spaces would be tokens that are easy to predict
    tokenizer.normalizer = normalizers.Sequence([normalizers.BertNormalizer(lowercase=True), spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = (piece for document in documents(text, text_column) for piece in document)
    tokenizer.train_from_iterator(pieces, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in (SPECIAL["cls_token"], SPECIAL["sep_token"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


@dataclass(frozen=True)
class Corpus:
    """Token ids of a text in full sequences. Documents follow each other, so that nothing is padded."""

    train: Tensor
    """``(sequences, max_seq_len)`` int32."""
    held_out: Tensor
    """``(sequences, max_seq_len)`` int64, with the tokens to predict hidden behind the mask token."""
    labels: Tensor
    """``(sequences, max_seq_len)`` int64: the hidden tokens, -100 elsewhere."""
    tokenizer: Any
    """What the ids are of."""

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
        """As :meth:`of`; without a text, of the documentation of this machine; without a tokenizer, by one of its own.

        Raises:
            InputError: the text has fewer than 20 sequences, or the tokenizer no mask token.
        """
        source = list(documentation()) if text is None else text
        tokenizer = train_tokenizer(source, vocab_size, text_column) if tokenizer is None else tokenizer
        if tokenizer.mask_token_id is None:
            raise InputError("tokenizer: it has no mask token, so nothing can be hidden; leave it out to train one")
        return cls.of(source, tokenizer, max_seq_len=max_seq_len, tokens=tokens, text_column=text_column, seed=seed)

    @classmethod
    def of(
        cls, text: Any, tokenizer: Any, *, max_seq_len: int, tokens: int | None, text_column: str, seed: int
    ) -> Corpus:
        """Tokenise a text; one sequence in 20 is held out, or fewer where that would be over 512.

        Raises:
            InputError: the text has fewer than 20 sequences.
        """
        prefix, suffix = special_tokens(tokenizer)
        stream = itertools.islice(_stream(text, tokenizer, suffix[-1:], text_column), tokens)
        ids = torch.from_numpy(np.fromiter(stream, dtype=np.int32))
        body = max_seq_len - len(prefix) - len(suffix)
        if body < 1:
            raise InputError(f"max_seq_len: {max_seq_len} leaves no room between the special tokens")
        count = len(ids) // body
        if count < HELD_OUT_EVERY:
            raise InputError(
                f"text: {len(ids)} tokens make {count} sequences of {max_seq_len}, and {HELD_OUT_EVERY} are the least; "
                "pass more text or a smaller max_seq_len"
            )
        ends = [torch.tensor(end, dtype=torch.int32).expand(count, -1) for end in (prefix, suffix)]
        sequences = torch.cat([ends[0], ids[: count * body].view(count, body), ends[1]], 1)
        held_out = torch.arange(count) % max(HELD_OUT_EVERY, -(-count // HELD_OUT_MOST)) == HELD_OUT_EVERY - 1
        hidden, labels = hide(sequences[held_out].long(), tokenizer, seed, mask_only=True)
        return cls(sequences[~held_out], hidden, labels, tokenizer)

    def held_out_text(self) -> Iterator[str]:
        """The held-out sequences as text, each without the word at either end, which may be half of one."""
        for ids in torch.where(self.labels == -100, self.held_out, self.labels).tolist():
            words = self.tokenizer.decode(ids, skip_special_tokens=True)
            yield words.partition(" ")[2].rpartition(" ")[0]

    def unigram_loss(self) -> float:
        """Cross-entropy, in nats, of the hidden tokens when each is predicted by its frequency in the training text.

        -mean log p(t),   p(t) = (count(t) + 1) / (tokens + vocabulary)
        """
        size = len(self.tokenizer)
        counts = torch.bincount(self.train.flatten().long(), minlength=size).double()
        counts[self.tokenizer.all_special_ids] = 0  # they are never hidden
        p = (counts + 1) / (counts.sum() + size)
        return -float(p[self.labels[self.labels != -100]].log().mean())


def hide(ids: Tensor, tokenizer: Any, seed: int, *, mask_only: bool = False) -> tuple[Tensor, Tensor]:
    """Hide 15 % of the tokens, none of them special, by Transformers' collator; the choice follows from ids and seed.

    So a run that goes on where another was cut off hides the same tokens, whatever was drawn before.

    Args:
        ids: ``(batch, length)`` int64.
        tokenizer: with a mask token.
        seed: another one, other tokens.
        mask_only: the mask token stands for all of them; otherwise for 80 %, and another token for 10 %, as in BERT.

    Returns:
        ids with the tokens hidden, and labels, -100 for those that are not; each ``(batch, length)`` int64.
    """
    from transformers import DataCollatorForLanguageModeling  # here, as it takes a second

    shares: dict[str, Any] = {"mask_replace_prob": 1.0, "random_replace_prob": 0.0} if mask_only else {}
    collator = DataCollatorForLanguageModeling(tokenizer, **shares)
    collator.generator = torch.Generator().manual_seed(zlib.crc32(ids.numpy().tobytes(), seed))
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    return collator.torch_mask_tokens(ids.clone(), special)


def documentation() -> Iterator[str]:
    """The English on every machine that has fastprobe, about 6 MB: Python's language reference, then docstrings.

    Those of the standard library, NumPy, pandas and Matplotlib, without their examples.
    """
    yield from demo_text().values()
    roots = [Path(sysconfig.get_path("stdlib"))]
    for name in ("numpy", "pandas", "matplotlib"):
        spec = importlib.util.find_spec(name)
        roots += [] if spec is None or spec.origin is None else [Path(spec.origin).parent]
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if not {"site-packages", "test", "tests", "idlelib"} & {*path.relative_to(root).parts}:
                yield from _docstrings(path)


def _docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a file of 100 characters or more, as one text."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # a template or a test of the parser
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    prose = [
        paragraph for text in found if len(text) >= 100 for paragraph in text.split("\n\n") if ">>>" not in paragraph
    ]
    if prose:
        yield "\n\n".join(prose)


def _stream(text: Any, tokenizer: Any, between: list[int], text_column: str) -> Iterator[int]:
    """The ids of all documents, with a special token between them."""
    pieces = _marked(documents(text, text_column))
    while chunk := list(itertools.islice(pieces, PIECES)):
        encoded = tokenizer([piece for piece, _ in chunk], add_special_tokens=False, verbose=False)["input_ids"]
        for ids, (_, last) in zip(encoded, chunk, strict=True):
            yield from ids
            if last:
                yield from between


def _marked(texts: Iterable[Iterable[str]]) -> Iterator[tuple[str, bool]]:
    """Pieces, and whether each is the last of its document."""
    for document in texts:
        pieces = iter(document)
        piece = next(pieces, None)
        while piece is not None:
            following = next(pieces, None)
            yield piece, following is None
            piece = following
