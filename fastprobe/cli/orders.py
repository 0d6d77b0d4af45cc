"""``permute`` and ``commutator``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import fastprobe as fp
from fastprobe.cli.app import VERSIONS, app, note, stdout
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
    Split,
    Text,
    TextColumn,
    Tokens,
    integer,
    named_batches,
)
from fastprobe.effects import has_language_head
from fastprobe.journal import FILE as JOURNAL
from fastprobe.journal import Journal
from fastprobe.loading import load_model
from fastprobe.models.resolve import resolve
from fastprobe.tables import orders_table, pairs_table
from fastprobe.text import MaskedBatches


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
    effects = fp.commutativity(
        loaded,
        MaskedBatches(batches, tokenizer, seed) if has_language_head(loaded) and not loaded.can_generate() else batches,
        [order for family in orders for order in fp.orders.named(family, depth)],
        progress=not quiet,
        journal=Journal(out, origin | {"seed": seed}, resume=resume),
    )
    _show(effects, origin | {"device": str(loaded.device)}, out, orders_table(effects.rows), json, quiet, JOURNAL)


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
    tokens: Tokens = "16k",
    max_seq_len: MaxSeqLen = 128,
    batch_size: BatchSize = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    out: Out = Path("fastprobe-out"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How far every two layers are from commuting, each pair by itself."""
    loaded, tokenizer = load_model(model, dtype, device)
    batches, origin = named_batches(
        loaded, tokenizer, model, text, dataset, split, text_column, tokens, max_seq_len, batch_size
    )
    at = state if state == "own" else integer("--state", state)
    result = fp.commutator(loaded, batches, state=at, progress=not quiet)
    _show(result, origin | {"device": str(loaded.device)}, out, pairs_table(result.rows), json, quiet)


def _show(
    result: fp.OrderEffects | fp.Commutators,
    origin: dict[str, Any],
    out: Path,
    table: Table,
    json: bool,
    quiet: bool,
    *files: str,
) -> None:
    """Save, draw and print a result of orders."""
    result.config.update(origin | {"versions": VERSIONS})
    result.save(out)
    picture = f"{result.kind}.png"
    result.plot(out / picture, "delta_loss" if result.rows[0].get("delta_loss") is not None else result.metric)
    if json:
        typer.echo(result.to_json())
    else:
        stdout.print(table)
    if not quiet:
        ran, naive = result.config["layer_forwards"], result.config["layer_forwards_naive"]
        note(f"{len(result.rows)} rows from {ran} layer runs a batch; one by one they would take {naive}")
        note(f"{out}: {', '.join(['scores.json', 'scores.csv', *files, picture])}")
