"""``fastprobe permute``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group

import fastprobe as fp
from fastprobe.cli.app import app, register_resumable
from fastprobe.cli.option_groups import takes
from fastprobe.cli.options import (
    BOTH_PARTS,
    DrawnMetric,
    Json,
    Out,
    Overwrite,
    Quiet,
    SkipParts,
    SkipScale,
    StackName,
    scaled_skips,
)
from fastprobe.cli.output import drawn_column, show
from fastprobe.cli.source import Source
from fastprobe.models.calling import has_language_head
from fastprobe.models.resolve import resolve
from fastprobe.reordering.effects import predicted_batches
from fastprobe.reordering.table import depths_table, orders_table
from fastprobe.results.kept import check_not_replaced
from fastprobe.runtime.journal import FILE as JOURNAL
from fastprobe.runtime.journal import Journal


@app.command()
@takes(Source, tokens="16k")
def permute(
    source: Source,
    orders: Annotated[
        list[str],
        typer.Option(
            help="swaps, adjacent, drops[:width=2], repeats, reversals, moves, shuffle:fixed=4,count=100, paper:fix4, "
            "file:orders.txt, or an order like 0,2,1,3; may be given several times."
        ),
    ] = ["swaps"],  # noqa: B006, Typer wants a list
    metric: DrawnMetric = "auto",
    depths: Annotated[
        bool, typer.Option("--depths", help="Also compare the states after each step, in a second table.")
    ] = False,
    skip_scale: SkipScale = None,
    skip_parts: SkipParts = BOTH_PARTS,
    seed: Annotated[int, typer.Option(help="Seed that chooses the masked tokens.")] = 0,
    stack: StackName = None,
    out: Out = Path("fastprobe-out/permute"),
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the finished orders in --out.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the layers in other orders and measure the effect on the output."""
    check_not_replaced(
        out,
        fp.OrderEffects.kind,
        (JOURNAL, f"{fp.OrderEffects.kind}.png"),
        progress_file=JOURNAL,
        resume=resume,
        overwrite=overwrite,
    )
    loaded, tokenizer = source.load_model(head=True)
    batches, provenance = source.load_batches(loaded, tokenizer)
    points = resolve(loaded, stack)
    depth, part = len(points.layers), points.part_of(loaded)
    metric = drawn_column(metric, type(part).__name__, has_language_head(part), depths)
    provenance |= {"skip_scale": skip_scale, "skip_parts": skip_parts} if skip_scale else {}
    register_resumable(out / JOURNAL)
    with scaled_skips(loaded, skip_scale, skip_parts):
        effects = fp.commutativity(
            loaded,
            predicted_batches(part, batches, tokenizer, seed),
            [order for family in orders for order in fp.orders.named(family, depth)],
            depths=depths,
            stack=stack,
            progress=not quiet,
            journal=Journal(out, provenance | {"seed": seed}, resume=resume),
        )
    table = orders_table(effects.rows)
    show(
        effects,
        Group(table, "", depths_table(effects.rows, metric)) if depths else table,
        provenance=provenance | {"device": str(loaded.device)},
        out=out,
        metric=metric,
        json=json,
        quiet=quiet,
        more_files=(JOURNAL,),
    )
