"""The model and the text that a user names on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import fastprobe as fp
from fastprobe.cli.options import Device, integer
from fastprobe.data.demo import DEMO
from fastprobe.data.labelled_batches import NEEDS_ROWS, WORDS
from fastprobe.data.sources import load_text, parse_count
from fastprobe.data.token_batches import TokenBatches, default_batch_size
from fastprobe.errors import InputError
from fastprobe.models.calling import device_of
from fastprobe.models.loading import load_model
from fastprobe.models.positions import most_tokens


@dataclass(frozen=True)
class ModelSource:
    """The model that a user names. A command takes the fields as options: ``@takes(ModelSource)``."""

    model: Annotated[str | None, typer.Argument(help="Hub name or local folder; by default the demo encoder.")] = None
    dtype: Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16 or float64.")] = "auto"
    device: Device = "auto"

    def load_model(self, *, head: bool = False, **placement: Any) -> tuple[Any, Any]:
        """Load the model and its tokenizer.

        Args:
            head: with the language-model head that was saved, if one was.
            placement: ``device_map``, ``offload_folder`` and ``room`` of :func:`~fastprobe.models.loading.load_model`.
        """
        return load_model(self.model, self.dtype, self.device, head=head, **placement)


@dataclass(frozen=True)
class TextSource:
    """The text that a user names. A command takes the fields as options: ``@takes(TextSource)``."""

    text: Annotated[list[Path] | None, typer.Option(help="A .txt or .jsonl file; may be given several times.")] = None
    dataset: Annotated[
        str | None, typer.Option(help="NAME or NAME:CONFIGURATION of a dataset, for datasets.load_dataset.")
    ] = None
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "train"
    text_column: Annotated[str, typer.Option(help="Text column of a .jsonl file or a dataset.")] = "text"

    @property
    def names_text(self) -> bool:
        """True if the user named a text."""
        return bool(self.text or self.dataset)

    def load_text(self) -> tuple[Any, dict[str, Any]]:
        """Return the text for :func:`fastprobe.token_batches`, and its entry in the configuration of a result."""
        return load_text(self.text or [], self.dataset, self.split)

    @property
    def text_argv(self) -> list[str]:
        """The options of the text, as a user types them."""
        files = [word for path in self.text or [] for word in ("--text", str(path))]
        return files + _argv(
            {
                "--dataset": self.dataset,
                "--split": self.split if self.dataset else None,
                "--text-column": self.text_column if self.text_column != "text" else None,
            }
        )


@dataclass(frozen=True)
class Source(ModelSource, TextSource):
    """The model, the text, and the sizes of batches. A command takes the fields as options: ``@takes(Source)``."""

    tokens: Annotated[str, typer.Option(help="Tokens to read, like 5000, 100k or 1.5M.")] = "100k"
    max_seq_len: Annotated[int, typer.Option(help="Longest sequence in tokens, special tokens included.")] = 128
    batch_size: Annotated[
        str, typer.Option(help="Sequences a batch; auto makes 4,096 tokens on a CPU, 32,768 elsewhere.")
    ] = "auto"
    skip_first: Annotated[
        int, typer.Option(help="First tokens of each sequence that the model reads but that count in no number.")
    ] = 0
    skip_special: Annotated[
        bool, typer.Option("--skip-special", help="Special tokens count in no number; the model reads them.")
    ] = False

    def load_batches(
        self, loaded: Any, tokenizer: Any, *, labels: Sequence[str] = (), words: str = WORDS
    ) -> tuple[TokenBatches, dict[str, Any]]:
        """Make the batches for a loaded model.

        Args:
            loaded: the model.
            tokenizer: its tokenizer.
            labels: columns of labels, for batches with labels.
            words: the column of words that the labels belong to.

        Returns:
            the batches, and their provenance: the entries of a result's configuration that name model, text and sizes.

        Raises:
            InputError: the sequences are too long for the model, the tokenizer belongs to another model, or labels are
                asked for without a text that has them.
        """
        if labels and not self.names_text:
            raise InputError(f"--labels: {NEEDS_ROWS}; name one with --text or --dataset")
        _check_positions(loaded, self.max_seq_len)
        text, named = self.load_text()
        automatic = default_batch_size(self.max_seq_len, device_of(loaded).type)
        sizes: dict[str, Any] = {
            "tokens": parse_count(self.tokens),
            "max_seq_len": self.max_seq_len,
            "batch_size": automatic if self.batch_size == "auto" else integer("--batch-size", self.batch_size),
            "skip_first": self.skip_first,
            "skip_special": self.skip_special,
        }
        batches: TokenBatches
        if labels:
            batches = fp.labelled_batches(text, tokenizer, labels, words=words, **sizes)
        else:
            batches = fp.token_batches(text, tokenizer, text_column=self.text_column, **sizes)
        _check_vocabulary(loaded, tokenizer, batches)
        provenance = named | {
            "model": DEMO if self.model is None else self.model,
            "max_seq_len": self.max_seq_len,
            "batch_size": batches.batch_size,
            "token_budget": batches.tokens,
            "model_dtype": str(loaded.dtype).removeprefix("torch."),
        }
        return batches, provenance

    @property
    def argv(self) -> list[str]:
        """The argument and the options of this source, as a user types them."""
        sizes = {
            "--tokens": self.tokens,
            "--max-seq-len": str(self.max_seq_len),
            "--batch-size": self.batch_size if self.batch_size != "auto" else None,
            "--dtype": self.dtype if self.dtype != "auto" else None,
            "--skip-first": str(self.skip_first) if self.skip_first else None,
        }
        special = ["--skip-special"] * self.skip_special
        return [*([self.model] if self.model else []), *self.text_argv, *_argv(sizes), *special]


def _argv(options: dict[str, str | None]) -> list[str]:
    """Return options and their values as arguments of a command line. ``None`` leaves an option out."""
    return [word for option, value in options.items() if value is not None for word in (option, value)]


def _check_vocabulary(model: Any, tokenizer: Any, batches: TokenBatches) -> None:
    """Refuse the tokenizer of another model. It may have more tokens than the model has rows if no text has them."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows and (token := int(next(iter(batches))["input_ids"].max())) >= rows:
        raise InputError(
            f"model: its tokenizer gives token {token}, but its embedding has {rows:,} rows; the tokenizer belongs to "
            "another model"
        )


def _check_positions(model: Any, length: int) -> None:
    """Refuse sequences longer than a table of learned positions. Rotary positions have no limit."""
    limit = most_tokens(model)
    if limit is not None and length > limit:
        raise InputError(f"--max-seq-len: must be at most {limit}, the positions of this model, got {length}")
