"""``pretrain``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.cli.app import VERSIONS, app, keeps, note, stdout
from fastprobe.cli.options import (
    Dataset,
    Device,
    HiddenSize,
    Json,
    LearningRate,
    Out,
    Quiet,
    Split,
    Steps,
    Text,
    TextColumn,
    TrainedLayers,
    Trainer,
    TrainingSeed,
    VocabSize,
    trainer_fields,
)
from fastprobe.models.loading import load_text, load_tokenizer, parse_count
from fastprobe.pretraining.run import CHECKPOINTS
from fastprobe.pretraining.table import costs_table, losses_table

PICTURE = "pretraining.png"


@app.command()
def pretrain(
    text: Text = None,
    dataset: Dataset = None,
    split: Split = "train",
    text_column: TextColumn = "text",
    variant: Annotated[
        str,
        typer.Option(
            help="bert, no-ffn, attention-for-ffn, gelu-attention, linear-attention, linear-ffn, no-skip:LAYERS, "
            "weighted-skip or shared-layers; several are joined by +."
        ),
    ] = "bert",
    layers: TrainedLayers = 4,
    hidden_size: HiddenSize = 128,
    heads: Annotated[int | None, typer.Option(help="By default heads of width 64.")] = None,
    ffn_size: Annotated[int | None, typer.Option(help="Width inside the FFN; by default four times that.")] = None,
    vocab_size: VocabSize = 4096,
    tokenizer: Annotated[str | None, typer.Option(help="Hub name or folder; trained on the text if not given.")] = None,
    max_seq_len: Annotated[int, typer.Option(help="Tokens of a sequence, special tokens included.")] = 128,
    tokens: Annotated[str | None, typer.Option(help="Read no more of the text than these, like 100k or 1.5M.")] = None,
    match: Annotated[
        str, typer.Option(help="Equal to BERT in: parameters (by other --layers), compute (by other --steps), or none.")
    ] = "none",
    steps: Steps = 8000,
    batch_size: Annotated[int, typer.Option(help="Sequences a step and process.")] = 8,
    learning_rate: LearningRate = None,
    warmup: Annotated[float, typer.Option(help="Share of the steps in which it rises.")] = 0.1,
    dropout: Annotated[float, typer.Option(help="Of states and attention weights.")] = 0.0,
    seed: TrainingSeed = 0,
    device: Device = "auto",
    trainer: Trainer = None,
    out: Out = Path("fastprobe-out"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train BERT, or a variant of it, from scratch. Runs under torchrun, too."""
    source, named = load_text(text or [], dataset, split) if text or dataset else (None, {"text": ["documentation"]})
    keeps(out / CHECKPOINTS)
    result = fp.pretrain(
        source,
        out,
        variant=variant,
        layers=layers,
        hidden_size=hidden_size,
        heads=heads,
        ffn_size=ffn_size,
        vocab_size=vocab_size,
        tokenizer=None if tokenizer is None else load_tokenizer(tokenizer),
        max_seq_len=max_seq_len,
        tokens=None if tokens is None else parse_count(tokens),
        text_column=text_column,
        match=match,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        dropout=dropout,
        seed=seed,
        device=device,
        resume=resume,
        progress=not quiet,
        trainer=trainer_fields(trainer),
    )
    if int(os.environ.get("RANK", "0")):
        return
    result.config.update(named | {"versions": VERSIONS})
    result.save(out)
    result.plot(out / PICTURE)
    if json:
        typer.echo(result.to_json())
    else:
        stdout.print(costs_table(result.config))
        stdout.print(losses_table(result.rows))
    if not quiet:
        loss, unigram = result.config["held_out_loss"], result.config["unigram_loss"]
        side = "below" if loss < unigram else "above"
        note(f"held-out loss {loss:.3f}, {abs(unigram - loss):.3f} {side} the unigram loss {unigram:.3f}")
        if unigram - loss < 2 * result.rows[-1]["held_out_loss_se"]:
            note("it has learnt no more than the frequencies of tokens; more --steps or a lower --learning-rate may do")
        note(f"{out}: a model and tokenizer for every command, scores.json, scores.csv, {PICTURE}")
