"""``paper``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import fastprobe as fp
from fastprobe.cli.app import VERSIONS, app, dumps, keeps, note, stdout
from fastprobe.cli.options import (
    BatchSize,
    Dataset,
    Device,
    Dtype,
    HiddenSize,
    Json,
    LearningRate,
    MaxSeqLen,
    Model,
    Out,
    Quiet,
    Resume,
    Split,
    Steps,
    Text,
    TextColumn,
    Tokens,
    TrainedLayers,
    Trainer,
    TrainingSeed,
    VocabSize,
    named_batches,
    trainer_fields,
)
from fastprobe.errors import InputError, NumericalError
from fastprobe.models.loading import load_model, load_text
from fastprobe.pretraining import Trained
from fastprobe.pretraining.family import HELD_OUT, SMALL_SET
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
"""Options that say how models are trained."""


@app.command()
def paper(
    context: typer.Context,
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
    train: Annotated[
        bool,
        typer.Option(
            "--train", help="Train BERT and its variants on the text first, and compare them; with the options:"
        ),
    ] = False,
    variant: Annotated[
        list[str] | None, typer.Option(help="As for pretrain, may be given several times; ten if none is.")
    ] = None,
    steps: Steps = 8000,
    layers: TrainedLayers = 4,
    hidden_size: HiddenSize = 128,
    vocab_size: VocabSize = 4096,
    learning_rate: LearningRate = None,
    train_batch_size: Annotated[int, typer.Option(help="Sequences a step.")] = 8,
    seed: TrainingSeed = 0,
    trainer: Trainer = None,
    out: Out = Path("fastprobe-out"),
    resume: Resume = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The 2021 paper's analyses of a model, as one HTML page. With --train they are of BERT and its variants."""
    typed = [name for name in TRAINING if context.get_parameter_source(name).name == "COMMANDLINE"]  # type: ignore[union-attr]
    if typed and not train:
        raise InputError(f"--{typed[0].replace('_', '-')}: goes with --train, which trains models to compare")
    if train and model:
        raise InputError(
            f"--train: trains the models that it asks, so that {model!r} has no place; leave one of them out"
        )
    say = (lambda text: None) if quiet else note
    keeps(out)
    if resume and not any(out.glob("*")):
        say(f"--resume: there is nothing in {out} to go on with; this is a first run")
    trained: list[Trained] = []
    if train:
        trained = fp.pretrain_variants(
            load_text(text or [], dataset, split)[0] if text or dataset else None,
            out / MODELS,
            variant or SMALL_SET,
            vocab_size=vocab_size,
            max_seq_len=max_seq_len,
            text_column=text_column,
            seed=seed,
            resume=resume,
            progress=not quiet,
            words=_words(text, dataset, split, text_column),
            say=say,
            steps=steps,
            layers=layers,
            hidden_size=hidden_size,
            learning_rate=learning_rate,
            batch_size=train_batch_size,
            trainer=trainer_fields(trainer),
            device=device,
        )
        if trained[0].failure:
            raise NumericalError(f"{trained[0].variant}: {trained[0].failure}")
        model, text, dataset, text_column = str(trained[0].folder), [out / MODELS / HELD_OUT], None, "text"
    loaded, tokenizer = load_model(model, dtype, device, head=True)
    batches, origin = named_batches(
        loaded, tokenizer, model, text, dataset, split, text_column, tokens, max_seq_len, batch_size
    )
    sizes = {
        "--tokens": tokens,
        "--max-seq-len": str(max_seq_len),
        "--batch-size": batch_size if batch_size != "auto" else None,
        "--dtype": dtype if dtype != "auto" else None,
    }
    rows = fp.paper(
        loaded,
        batches,
        out,
        tokenizer=tokenizer,
        origin=origin | {"device": str(loaded.device), "versions": VERSIONS},
        words=[*([model] if model else []), *_words(text, dataset, split, text_column), *_typed(sizes)],
        variants=trained,
        resume=resume,
        progress=not quiet,
        say=say,
    )
    if json:
        typer.echo(dumps(rows))
    else:
        stdout.print(claims_table(rows))
    say(f"{out}: paper.html, and the results of every section in a folder")


def _words(text: list[Path] | None, dataset: str | None, split: str, text_column: str) -> list[str]:
    """A text as it is typed."""
    named = {
        "--dataset": dataset,
        "--split": split if dataset else None,
        "--text-column": text_column if text_column != "text" else None,
    }
    return [*(word for path in text or [] for word in ("--text", str(path))), *_typed(named)]


def _typed(options: dict[str, Any]) -> list[str]:
    return [word for option, value in options.items() if value is not None for word in (option, value)]
