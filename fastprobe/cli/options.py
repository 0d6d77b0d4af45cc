"""Options that commands share, and the batches that they name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

import fastprobe as fp
from fastprobe.data.labelled_text import ROWS, WORDS
from fastprobe.data.token_batches import DEMO, TokenBatches, default_batch_size
from fastprobe.errors import InputError
from fastprobe.models.loading import load_text, parse_count

Model = Annotated[str | None, typer.Argument(help="Hub name or local folder; the demo encoder if none is given.")]
Text = Annotated[list[Path] | None, typer.Option(help="A .txt or .jsonl file; may be given several times.")]
Dataset = Annotated[str | None, typer.Option(help="A name for datasets.load_dataset, or name:configuration.")]
Split = Annotated[str, typer.Option(help="Split of the dataset.")]
TextColumn = Annotated[str, typer.Option(help="Where the text of a .jsonl line or a dataset's row is.")]
Tokens = Annotated[str, typer.Option(help="How many tokens to read, like 5000, 100k or 1.5M.")]
MaxSeqLen = Annotated[int, typer.Option(help="Longest sequence, special tokens included.")]
BatchSize = Annotated[str, typer.Option(help="Sequences a batch; auto makes 4,096 tokens on a CPU, 32,768 elsewhere.")]
Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16 or float64.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is finished in --out.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no notes.")]
DrawnMetric = Annotated[
    str, typer.Option(help="The column to draw; auto is delta_loss, or relative_l2 for a model without a head.")
]
SkipScale = Annotated[
    str | None, typer.Option(help="Scale skip connections: 0 cuts them all, 3=0,4=0.5 those of layers 3 and 4.")
]
TrainedLayers = Annotated[int, typer.Option("--layers", help="Layers of BERT.")]
HiddenSize = Annotated[int, typer.Option(help="Width of a state.")]
VocabSize = Annotated[int, typer.Option(help="Of the tokenizer that is trained.")]
Steps = Annotated[int, typer.Option(help="Steps of the optimiser.")]
LearningRate = Annotated[
    float | None,
    typer.Option(
        help="The highest, before it falls linearly to zero; by default 1e-3, or for variants that learn nothing with "
        "that 3e-4 (attention-for-ffn) or 1e-4 (linear-attention, no-skip)."
    ),
]
TrainingSeed = Annotated[int, typer.Option("--seed", help="Of weights, order, masks and dropout.")]
Trainer = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE, a field of transformers.TrainingArguments, like bf16=true.")
]
SkipParts = Annotated[str, typer.Option(help="Which skip connections of a layer: attention, ffn or both.")]


def named_batches(
    loaded: Any,
    tokenizer: Any,
    model: str | None,
    text: list[Path] | None,
    dataset: str | None,
    split: str,
    text_column: str,
    tokens: str,
    max_seq_len: int,
    batch_size: str,
    *,
    labels: Sequence[str] = (),
    words: str = WORDS,
) -> tuple[TokenBatches, dict[str, Any]]:
    """The batches that a user's options name, and what there is to say of them in a result."""
    if labels and not (text or dataset):
        raise InputError(f"--labels: {ROWS}; name one with --text or --dataset")
    _check_positions(loaded, max_seq_len)
    source, named = load_text(text or [], dataset, split)
    automatic = default_batch_size(max_seq_len, loaded.device.type)
    size = automatic if batch_size == "auto" else integer("--batch-size", batch_size)
    sizes = {"tokens": parse_count(tokens), "max_seq_len": max_seq_len, "batch_size": size}
    batches: TokenBatches
    if labels:
        batches = fp.labelled_batches(source, tokenizer, labels, words=words, **sizes)
    else:
        batches = fp.token_batches(source, tokenizer, text_column=text_column, **sizes)
    _check_vocabulary(loaded, tokenizer, batches)
    origin = named | {
        "model": DEMO if model is None else model,
        "max_seq_len": max_seq_len,
        "batch_size": batches.batch_size,
        "token_budget": batches.tokens,
        "model_dtype": str(loaded.dtype).removeprefix("torch."),
    }
    return batches, origin


def _check_vocabulary(model: Any, tokenizer: Any, batches: TokenBatches) -> None:
    """Refuse a tokenizer of another model. One may have more tokens than a model has rows, if no text has them."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows and (token := int(next(iter(batches))["input_ids"].max())) >= rows:
        raise InputError(
            f"model: its tokenizer gives token {token}, and its embedding has {rows:,} rows; they are not of one model"
        )


def _check_positions(model: Any, length: int) -> None:
    """Refuse sequences longer than a table of learned positions; rotary ones have no end."""
    limit = getattr(model.config, "max_position_embeddings", None) or length
    tables = (module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding))
    if length > limit and limit in tables:
        raise InputError(f"--max-seq-len: this model has {limit} positions, got {length}")


def scaled_skips(model: Any, scale: str | None, parts: str) -> AbstractContextManager[Any]:
    """The model with its skip connections as ``--skip-scale`` and ``--skip-parts`` say."""
    if scale is None:
        return nullcontext(model)
    return fp.skip_scale(model, _scales(scale), parts=parts.split(","))


def trainer_fields(trainer: list[str] | None) -> dict[str, Any]:
    """What ``--trainer`` says, values as JSON where they are JSON.

    Raises:
        InputError: one is not ``NAME=VALUE``.
    """
    fields: dict[str, Any] = {}
    for text in trainer or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--trainer: {text!r} is not NAME=VALUE, like bf16=true")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def _scales(text: str) -> float | dict[int, float]:
    try:
        if "=" not in text:
            return float(text)
        pairs = [part.split("=") for part in text.split(",")]
        return {int(layer): float(scale) for layer, scale in pairs}
    except ValueError:
        raise InputError(f"--skip-scale: {text!r} is neither a number nor layer=number,...") from None


def number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option}: {text!r} is not a number") from None


def integer(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{option}: {text!r} is not a number") from None
