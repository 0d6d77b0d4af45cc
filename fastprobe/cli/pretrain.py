"""``fastprobe pretrain``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.cli.app import app, made_by, note, register_resumable, stdout
from fastprobe.cli.option_groups import takes
from fastprobe.cli.options import (
    Device,
    HiddenSize,
    Json,
    LearningRate,
    Out,
    Overwrite,
    Quiet,
    Steps,
    TrainedLayers,
    Trainer,
    TrainingSeed,
    VocabSize,
    trainer_fields,
)
from fastprobe.cli.source import TextSource
from fastprobe.data.sources import parse_count
from fastprobe.models.loading import load_tokenizer
from fastprobe.pretraining.resume import CHECKPOINTS
from fastprobe.pretraining.table import costs_table, losses_table
from fastprobe.regression.evidence import NOISE, cannot_be_said, tokens_for_difference

PICTURE = "pretraining.png"


@app.command()
@takes(TextSource)
def pretrain(
    source: TextSource,
    variant: Annotated[
        str,
        typer.Option(
            help="bert, no-ffn, attention-for-ffn, gelu-attention, linear-attention, linear-ffn, no-skip:LAYERS, "
            "weighted-skip or shared-layers; join several with +."
        ),
    ] = "bert",
    layers: TrainedLayers = 4,
    hidden_size: HiddenSize = 128,
    heads: Annotated[int | None, typer.Option(help="Attention heads; by default of width 64.")] = None,
    ffn_size: Annotated[int | None, typer.Option(help="Width inside the FFN; by default four times that.")] = None,
    vocab_size: VocabSize = 4096,
    tokenizer: Annotated[str | None, typer.Option(help="Hub name or folder; by default trained on the text.")] = None,
    max_seq_len: Annotated[int, typer.Option(help="Tokens of a sequence, special tokens included.")] = 128,
    tokens: Annotated[str | None, typer.Option(help="Most tokens to read, like 100k or 1.5M.")] = None,
    match: Annotated[
        str, typer.Option(help="Match BERT in parameters (changes --layers), compute (changes --steps), or none.")
    ] = "none",
    steps: Steps = 8000,
    batch_size: Annotated[int, typer.Option(help="Sequences for a step and process.")] = 8,
    learning_rate: LearningRate = None,
    warmup: Annotated[float, typer.Option(help="Fraction of the steps in which the learning rate rises.")] = 0.1,
    dropout: Annotated[float, typer.Option(help="Dropout of states and attention weights.")] = 0.0,
    seed: TrainingSeed = 0,
    device: Device = "auto",
    trainer: Trainer = None,
    out: Out = Path("fastprobe-out/pretrain"),
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint in --out.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train BERT or a variant of it from scratch. Also runs under torchrun."""
    text, provenance = source.load_text() if source.names_text else (None, {"text": ["documentation"]})
    register_resumable(out / CHECKPOINTS)
    result = fp.pretrain(
        text,
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
        text_column=source.text_column,
        match=match,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
        dropout=dropout,
        seed=seed,
        device=device,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
        trainer=trainer_fields(trainer),
    )
    if int(os.environ.get("RANK", "0")):
        return
    result.config.update(provenance | made_by())
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
        error, seen = result.rows[-1]["held_out_loss_se"], result.config["held_out_tokens"]
        if abs(unigram - loss) <= NOISE * error:
            needed = tokens_for_difference(seen, unigram - loss, error)
            note(f"whether the model has learnt more than frequencies {cannot_be_said(seen, needed)} (held out)")
        if unigram - loss <= NOISE * error:
            note("the model may have learnt only token frequencies; more --steps or a lower --learning-rate may help")
        note(f"{out}: a model and tokenizer for every command, scores.json, scores.csv, {PICTURE}")
