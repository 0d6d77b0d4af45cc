"""``permute`` and ``commutator``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group

import fastprobe as fp
from fastprobe.cli.app import app, keeps
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
    SkipParts,
    SkipScale,
    Split,
    Text,
    TextColumn,
    Tokens,
    integer,
    named_batches,
    scaled_skips,
)
from fastprobe.cli.showing import drawn_column, show
from fastprobe.models.loading import load_model
from fastprobe.models.resolve import resolve
from fastprobe.models.skip_scale import PARTS
from fastprobe.models.stack import has_language_head
from fastprobe.reordering.effects import predicted_batches
from fastprobe.reordering.table import depths_table, orders_table, pairs_table
from fastprobe.runtime.files import make_folder
from fastprobe.runtime.journal import FILE as JOURNAL
from fastprobe.runtime.journal import Journal

BOTH = ",".join(PARTS)


@app.command()
def permute(
    model: Model = None,
    text: Text = None,
    dataset: Dataset = None,
    split: Split = "train",
    text_column: TextColumn = "text",
    orders: Annotated[
        list[str],
        typer.Option(
            help="swaps, adjacent, drops[:width=2], repeats, reversals, moves, shuffle:fixed=4,count=100, paper:fix4, "
            "file:orders.txt, an order like 0,2,1,3, ...; may be given several times."
        ),
    ] = ["swaps"],  # noqa: B006, Typer wants a list
    tokens: Tokens = "16k",
    max_seq_len: MaxSeqLen = 128,
    batch_size: BatchSize = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    metric: DrawnMetric = "auto",
    depths: Annotated[
        bool, typer.Option("--depths", help="Also compare the states after every step, in a second table.")
    ] = False,
    skip_scale: SkipScale = None,
    skip_parts: SkipParts = BOTH,
    seed: Annotated[int, typer.Option(help="Seed of the tokens that an encoder's head is to predict.")] = 0,
    out: Out = Path("fastprobe-out"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the finished orders in --out.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What running the layers in other orders does to the output."""
    loaded, tokenizer = load_model(model, dtype, device, head=True)
    batches, origin = named_batches(
        loaded, tokenizer, model, text, dataset, split, text_column, tokens, max_seq_len, batch_size
    )
    depth = len(resolve(loaded).layers)
    metric = drawn_column(metric, type(loaded).__name__, has_language_head(loaded), depths)
    origin |= {"skip_scale": skip_scale, "skip_parts": skip_parts} if skip_scale else {}
    keeps(out / JOURNAL)
    with scaled_skips(loaded, skip_scale, skip_parts):
        effects = fp.commutativity(
            loaded,
            predicted_batches(loaded, batches, tokenizer, seed),
            [order for family in orders for order in fp.orders.named(family, depth)],
            depths=depths,
            progress=not quiet,
            journal=Journal(out, origin | {"seed": seed}, resume=resume),
        )
    origin |= {"device": str(loaded.device)}
    table = orders_table(effects.rows)
    shown = Group(table, "", depths_table(effects.rows, metric)) if depths else table
    show(effects, origin, out, metric, shown, json, quiet, JOURNAL)


@app.command()
def commutator(
    model: Model = None,
    text: Text = None,
    dataset: Dataset = None,
    split: Split = "train",
    text_column: TextColumn = "text",
    state: Annotated[
        str, typer.Option(help="own: what the first of two layers gets; or the input of one layer.")
    ] = "own",
    skip_scale: SkipScale = None,
    skip_parts: SkipParts = BOTH,
    tokens: Tokens = "16k",
    max_seq_len: MaxSeqLen = 128,
    batch_size: BatchSize = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    out: Out = Path("fastprobe-out"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How far every two layers are from commuting. Each pair runs by itself."""
    loaded, tokenizer = load_model(model, dtype, device)
    batches, origin = named_batches(
        loaded, tokenizer, model, text, dataset, split, text_column, tokens, max_seq_len, batch_size
    )
    at = state if state == "own" else integer("--state", state)
    make_folder(out)
    origin |= {"skip_scale": skip_scale, "skip_parts": skip_parts} if skip_scale else {}
    with scaled_skips(loaded, skip_scale, skip_parts):
        result = fp.commutator(loaded, batches, state=at, progress=not quiet)
    origin |= {"device": str(loaded.device)}
    show(result, origin, out, result.metric, pairs_table(result.rows), json, quiet)
