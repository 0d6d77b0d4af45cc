"""``paper``."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

import fastprobe as fp
from fastprobe.cli.app import VERSIONS, app, dumps, note, stdout
from fastprobe.cli.options import (
    BatchSize,
    Dataset,
    Device,
    Dtype,
    Json,
    MaxSeqLen,
    Model,
    Out,
    Quiet,
    Resume,
    Split,
    Text,
    TextColumn,
    Tokens,
    named_batches,
)
from fastprobe.loading import load_model
from fastprobe.tables import claims_table


@app.command()
def paper(
    model: Model = None,
    text: Text = None,
    dataset: Dataset = None,
    split: Split = "train",
    text_column: TextColumn = "text",
    tokens: Tokens = "8k",
    max_seq_len: MaxSeqLen = 128,
    batch_size: BatchSize = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    out: Out = Path("fastprobe-out"),
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The analyses of the 2021 paper on one model, as one HTML page."""
    loaded, tokenizer = load_model(model, dtype, device, head=True)
    batches, origin = named_batches(
        loaded, tokenizer, model, text, dataset, split, text_column, tokens, max_seq_len, batch_size
    )
    named = {
        "--dataset": dataset,
        "--split": split if dataset else None,
        "--text-column": text_column if text_column != "text" else None,
        "--tokens": tokens,
        "--max-seq-len": str(max_seq_len),
        "--batch-size": batch_size if batch_size != "auto" else None,
        "--dtype": dtype if dtype != "auto" else None,
    }
    words = [model] if model else []
    words += [word for path in text or [] for word in ("--text", str(path))]
    words += [word for option, value in named.items() if value is not None for word in (option, value)]
    rows = fp.paper(
        loaded,
        batches,
        out,
        tokenizer=tokenizer,
        origin=origin | {"device": str(loaded.device), "versions": VERSIONS},
        arguments=shlex.join(words),
        resume=resume,
        progress=not quiet,
        say=(lambda text: None) if quiet else note,
    )
    if json:
        typer.echo(dumps(rows))
    else:
        stdout.print(claims_table(rows))
    if not quiet:
        note(f"{out}: paper.html, and the results of every section in a folder")
