"""``fastprobe paper``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.cli.app import VERSIONS, app, dumps, note, register_resumable, stdout
from fastprobe.cli.option_groups import takes
from fastprobe.cli.options import (
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
from fastprobe.cli.processes import check_shared
from fastprobe.cli.source import Source
from fastprobe.errors import InputError, NumericalError
from fastprobe.pretraining import TrainedVariant
from fastprobe.pretraining.variant_set import DEFAULT_VARIANTS, HELD_OUT
from fastprobe.replication.run import check_page_not_replaced
from fastprobe.replication.table import claims_table

MODELS = "models"
TRAINING = (
    "variant",
    "steps",
    "layers",
    "hidden_size",
    "vocab_size",
    "learning_rate",
    "train_batch_size",
    "seed",
    "trainer",
)
"""Options that need ``--train``."""


@app.command()
@takes(Source, tokens="8k")
def paper(
    source: Source,
    context: typer.Context,
    train: Annotated[
        bool,
        typer.Option(
            "--train", help="First train BERT and its variants on the text, to compare them; with the options:"
        ),
    ] = False,
    variant: Annotated[
        list[str] | None, typer.Option(help="As for pretrain, may be given several times; by default ten.")
    ] = None,
    steps: Steps = 8000,
    layers: TrainedLayers = 4,
    hidden_size: HiddenSize = 128,
    vocab_size: VocabSize = 4096,
    learning_rate: LearningRate = None,
    train_batch_size: Annotated[int, typer.Option(help="Sequences a step.")] = 8,
    seed: TrainingSeed = 0,
    trainer: Trainer = None,
    out: Out = Path("fastprobe-out/paper"),
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the finished sections in --out.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Repeat the 2021 paper's analyses of a model, or of BERT and its variants, as one HTML page."""
    typed = [name for name in TRAINING if context.get_parameter_source(name).name == "COMMANDLINE"]  # type: ignore[union-attr]
    if typed and not train:
        raise InputError(f"--{typed[0].replace('_', '-')}: needs --train, which trains the models to compare")
    if train:
        check_shared("paper --train")
    if train and source.model:
        raise InputError(f"--train: takes no model, because it trains its own; got {source.model!r}, leave one out")
    check_page_not_replaced(out, resume=resume, overwrite=overwrite)  # before hours of training
    say: Callable[[str], None] = (lambda text: None) if quiet else note
    register_resumable(out)
    if resume and not any(out.glob("*")):
        say(f"--resume: there is nothing in {out} to resume from; this is a first run")
    trained: list[TrainedVariant] = []
    if train:
        trained = fp.pretrain_variants(
            source.load_text()[0] if source.names_text else None,
            out / MODELS,
            variant or DEFAULT_VARIANTS,
            vocab_size=vocab_size,
            max_seq_len=source.max_seq_len,
            text_column=source.text_column,
            seed=seed,
            resume=resume,
            overwrite=overwrite,
            progress=not quiet,
            words=source.text_argv,
            say=say,
            steps=steps,
            layers=layers,
            hidden_size=hidden_size,
            learning_rate=learning_rate,
            batch_size=train_batch_size,
            trainer=trainer_fields(trainer),
            device=source.device,
        )
        baseline = trained[0]
        if baseline.failure:
            raise NumericalError(f"{baseline.variant}: {baseline.failure}")
        held_out = out / MODELS / HELD_OUT
        source = replace(source, model=str(baseline.folder), text=[held_out], dataset=None, text_column="text")
    loaded, tokenizer = source.load_model(head=True)
    batches, provenance = source.load_batches(loaded, tokenizer)
    rows = fp.paper(
        loaded,
        batches,
        out,
        tokenizer=tokenizer,
        origin=provenance | {"device": str(loaded.device), "versions": VERSIONS},
        words=source.argv,
        variants=trained,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
        say=say,
    )
    if json:
        typer.echo(dumps(rows))
    else:
        stdout.print(claims_table(rows))
    say(f"{out}: paper.html, and the results of every section in a folder")
