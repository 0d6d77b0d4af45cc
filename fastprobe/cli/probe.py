"""``fastprobe probe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.cli.app import app
from fastprobe.cli.option_groups import takes
from fastprobe.cli.options import Alpha, Json, Out, Overwrite, Quiet, StackName, scored_sequences
from fastprobe.cli.output import note_few_tokens, show
from fastprobe.cli.source import Source
from fastprobe.data.labelled_batches import WORDS, LabelledBatches
from fastprobe.errors import InputError
from fastprobe.models.resolve import resolve
from fastprobe.probes.table import probes_table
from fastprobe.probes.token_labels import OF_IDS, OF_TEXT
from fastprobe.results.kept import check_not_replaced
from fastprobe.runtime.files import make_folder

COLUMNS = ("r2", "r2_cv", "accuracy", "accuracy_cv")


@app.command()
@takes(Source, tokens="100k")
def probe(
    source: Source,
    tasks: Annotated[
        str | None, typer.Option(help="Comma-separated: token, previous, next, position, word_piece, sentence.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Column with a label for each word, in a .jsonl file or dataset; may be given several times."
        ),
    ] = None,
    words: Annotated[str, typer.Option(help="Column of words that --labels belong to.")] = WORDS,
    orders: Annotated[
        list[str] | None, typer.Option(help="Orders to probe besides the baseline, as for permute.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of the held-out scores; 0 for none.")] = 5,
    alpha: Alpha = 0.0,
    score_sequences: Annotated[str, typer.Option(help="Sequences for the accuracies: a number or all.")] = "64",
    metric: Annotated[str, typer.Option(help="Column of the table and the picture.")] = "r2_cv",
    seed: Annotated[int, typer.Option(help="Seed that chooses the sequences for the accuracies.")] = 0,
    stack: StackName = None,
    out: Out = Path("fastprobe-out/probe"),
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit linear probes for token properties on every state, in the baseline and in other orders."""
    check_not_replaced(out, fp.Probes.kind, (f"{fp.Probes.kind}.png",), overwrite=overwrite)
    loaded, tokenizer = source.load_model()
    labels = list(dict.fromkeys(labels or []))
    for name in {*labels} & {*OF_IDS, *OF_TEXT}:
        raise InputError(f"--labels: {name!r} is a task that needs no labels; give the column another name")
    batches, provenance = source.load_batches(loaded, tokenizer, labels=labels, words=words)
    depth = len(resolve(loaded, stack).layers)
    if metric not in COLUMNS:
        raise InputError(f"--metric: {metric!r} is not one of {', '.join(COLUMNS)}")
    make_folder(out)
    probes = fp.probe(
        loaded,
        batches,
        tasks=([*OF_IDS, *OF_TEXT] if tasks is None else tasks.split(",")) + labels,
        tokenizer=tokenizer,
        orders=[order for family in orders or () for order in fp.orders.named(family, depth)],
        folds=folds,
        method=fp.LeastSquares(alpha=alpha),
        score_sequences=scored_sequences(score_sequences),
        seed=seed,
        stack=stack,
        progress=not quiet,
    )
    if isinstance(batches, LabelledBatches):
        provenance |= {"classes": {name: list(classes) for name, classes in batches.classes.items()}}
    show(
        probes,
        probes_table(probes, metric),
        provenance=provenance | {"device": str(loaded.device)},
        out=out,
        metric=metric,
        json=json,
        quiet=quiet,
    )
    if not quiet:
        note_few_tokens(probes.config["tokens"], loaded.config.hidden_size)
