"""``ablate`` and ``probe``: what parts of a model do, and what its states know."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.ablations.table import ablations_table
from fastprobe.cli.app import app, keeps, note
from fastprobe.cli.options import (
    BatchSize,
    Dataset,
    Device,
    DrawnMetric,
    Dtype,
    Json,
    MaxSeqLen,
    Model,
    Out,
    Quiet,
    Split,
    Text,
    TextColumn,
    Tokens,
    integer,
    named_batches,
    number,
)
from fastprobe.cli.showing import drawn_column, remark_on_few, show
from fastprobe.data.labelled_text import WORDS, LabelledBatches
from fastprobe.errors import InputError
from fastprobe.models.loading import load_model
from fastprobe.models.points import parse_range
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import has_language_head
from fastprobe.probes.table import probes_table
from fastprobe.probes.token_labels import OF_IDS, OF_TEXT
from fastprobe.reordering.effects import predicted_batches
from fastprobe.runtime.files import make_folder
from fastprobe.runtime.journal import FILE as JOURNAL
from fastprobe.runtime.journal import Journal


@app.command()
def ablate(
    model: Model = None,
    text: Text = None,
    dataset: Dataset = None,
    split: Split = "train",
    text_column: TextColumn = "text",
    elements: Annotated[
        str,
        typer.Option(
            help="Comma-separated: mlp, attn (bare parts), ffn, attention (with residual and norm), layer, ..."
        ),
    ] = "mlp",
    mode: Annotated[
        str, typer.Option(help="Comma-separated: zero, mean, resample, random_init, linear, identity.")
    ] = "zero",
    layers: Annotated[
        list[str],
        typer.Option(help="each; forward or backward, cumulatively; or a set like 0-4,7, as often as you like."),
    ] = ["each"],  # noqa: B006, Typer wants a list
    folds: Annotated[
        int, typer.Option(help="Folds of linear maps, none of which sees what it replaces; 0 for one.")
    ] = 5,
    alpha: Annotated[
        str, typer.Option(help="Ridge penalty of linear maps; auto chooses by cross-validation.")
    ] = "auto",
    tokens: Tokens = "16k",
    max_seq_len: MaxSeqLen = 128,
    batch_size: BatchSize = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    metric: DrawnMetric = "auto",
    seed: Annotated[int, typer.Option(help="Seed of resample, random_init and masked tokens.")] = 0,
    write: Annotated[
        Path | None,
        typer.Option(help="Folder for the model with --layers, one set, made linear (--elements mlp --mode linear)."),
    ] = None,
    out: Out = Path("fastprobe-out"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the finished rows in --out.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What a model loses without some of its parts. Linear maps can take their place."""
    sets = _sets(layers)
    if write is not None and (elements != "mlp" or mode != "linear" or isinstance(sets, str) or len(sets) > 1):
        raise InputError("--write: needs --elements mlp --mode linear and one set of --layers, like 2-5")
    if write is not None:
        make_folder(write)  # now: Transformers takes a file of that name for a reason to write nothing, and goes on
    loaded, tokenizer = load_model(model, dtype, device, head=True)
    batches, origin = named_batches(
        loaded, tokenizer, model, text, dataset, split, text_column, tokens, max_seq_len, batch_size
    )
    metric = drawn_column(metric, type(loaded).__name__, has_language_head(loaded))
    keeps(out / JOURNAL)
    damage = fp.ablation(
        loaded,
        predicted_batches(loaded, batches, tokenizer, seed),
        elements=elements.split(","),
        mode=mode.split(","),
        layers=sets,
        folds=folds,
        alpha=None if alpha == "auto" else number("--alpha", alpha),
        seed=seed,
        progress=not quiet,
        journal=Journal(out, origin | {"seed": seed}, resume=resume),
    )
    origin |= {"device": str(loaded.device)}
    show(damage, origin, out, metric, ablations_table(damage.rows), json, quiet, JOURNAL)
    if damage.maps and not quiet:
        remark_on_few(damage.config["tokens"], max(len(fitted.coef) for fitted in damage.maps.values()))
    if write is not None:
        for layer in sets[0]:
            fp.write_linear_mlp_(loaded, int(layer), damage.maps[f"mlp.{layer}"])
        loaded.save_pretrained(write)
        tokenizer.save_pretrained(write)
        if not quiet:
            note(f"{write}: the model with linear FFNs in layers {', '.join(layers)}, for from_pretrained")


@app.command()
def probe(
    model: Model = None,
    text: Text = None,
    dataset: Dataset = None,
    split: Split = "train",
    text_column: TextColumn = "text",
    tasks: Annotated[
        str | None, typer.Option(help="Comma-separated: token, previous, next, position, word_piece, sentence.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of labels, one a word, like ner_tags, in the rows of a .jsonl --text or of --dataset; may "
            "be given several times. The first token of a word has its label."
        ),
    ] = None,
    words: Annotated[str, typer.Option(help="With --labels: the column of a row's words.")] = WORDS,
    orders: Annotated[
        list[str] | None, typer.Option(help="Orders to probe besides the model's own, as permute takes them.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Folds of the held-out scores; 0 for none.")] = 5,
    alpha: Annotated[float, typer.Option(help="Ridge penalty.")] = 0.0,
    score_sequences: Annotated[str, typer.Option(help="Sequences for the accuracies: a number or all.")] = "64",
    metric: Annotated[str, typer.Option(help="The column of the table and the picture.")] = "r2_cv",
    tokens: Tokens = "100k",
    max_seq_len: MaxSeqLen = 128,
    batch_size: BatchSize = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the choice of scored sequences.")] = 0,
    out: Out = Path("fastprobe-out"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What a linear read-out of every state knows of tokens. Other orders of layers can be asked, too."""
    loaded, tokenizer = load_model(model, dtype, device)
    named = list(dict.fromkeys(labels or []))
    for name in {*named} & {*OF_IDS, *OF_TEXT}:
        raise InputError(f"--labels: {name!r} is a task that needs no labels; give the column another name")
    batches, origin = named_batches(
        loaded,
        tokenizer,
        model,
        text,
        dataset,
        split,
        text_column,
        tokens,
        max_seq_len,
        batch_size,
        labels=named,
        words=words,
    )
    depth = len(resolve(loaded).layers)
    if metric not in COLUMNS:
        raise InputError(f"--metric: {metric!r} is not one of {', '.join(COLUMNS)}")
    make_folder(out)
    probes = fp.probe(
        loaded,
        batches,
        tasks=([*OF_IDS, *OF_TEXT] if tasks is None else tasks.split(",")) + named,
        tokenizer=tokenizer,
        orders=[order for family in orders or () for order in fp.orders.named(family, depth)],
        folds=folds,
        method=fp.LeastSquares(alpha=alpha),
        score_sequences="all" if score_sequences == "all" else integer("--score-sequences", score_sequences),
        seed=seed,
        progress=not quiet,
    )
    if isinstance(batches, LabelledBatches):
        origin |= {"classes": {name: list(classes) for name, classes in batches.classes.items()}}
    show(probes, origin | {"device": str(loaded.device)}, out, metric, probes_table(probes, metric), json, quiet)
    if not quiet:
        remark_on_few(probes.config["tokens"], loaded.config.hidden_size)


COLUMNS = ("r2", "r2_cv", "accuracy", "accuracy_cv")


def _sets(layers: list[str]) -> str | list[list[int]]:
    """A sweep, or sets of layers."""
    if len(layers) == 1 and layers[0].isalpha():
        return layers[0]
    return [[i for part in one.split(",") for i in range(*parse_range(part))] for one in layers]
