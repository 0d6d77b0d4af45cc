"""``linearity``, ``points`` and ``merge``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.cli.app import VERSIONS, app, dumps, keeps, note, stdout
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
from fastprobe.cli.showing import remark_on_few
from fastprobe.models.identities import check_points
from fastprobe.models.loading import load_model
from fastprobe.models.points import parse_range
from fastprobe.models.resolve import resolve
from fastprobe.models.table import identities_table
from fastprobe.runtime.files import make_folder
from fastprobe.scan.checkpoint import FILE, Checkpoint
from fastprobe.scan.merging import merge_scans
from fastprobe.scan.table import linearity_table

FIGURE = "linearity.png"


@app.command()
def linearity(
    model: Model = None,
    text: Text = None,
    dataset: Dataset = None,
    split: Split = "train",
    text_column: TextColumn = "text",
    elements: Annotated[str | None, typer.Option(help="Comma-separated names; all ten if not given.")] = None,
    layers: Annotated[str | None, typer.Option(help="Half-open ranges and single layers, like 0-4,7.")] = None,
    spans: Annotated[str, typer.Option(help="all, none, or half-open ranges like 2-5,0-3.")] = "none",
    folds: Annotated[int, typer.Option(help="Folds of r2_cv; 0 for none.")] = 5,
    score_sequences: Annotated[str, typer.Option(help="Sequences for the cosine columns: a number or all.")] = "64",
    objective: Annotated[
        str, typer.Option(help="least-squares, or cosine to fit unit-norm targets too.")
    ] = "least-squares",
    alpha: Annotated[float, typer.Option(help="Ridge penalty.")] = 0.0,
    cka: Annotated[str, typer.Option(help="auto (y no wider than x), all or none.")] = "auto",
    tokens: Tokens = "100k",
    max_seq_len: MaxSeqLen = 128,
    batch_size: BatchSize = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    backend: Annotated[str, typer.Option(help="auto, cuda, triton, cpu or torch.")] = "auto",
    exact: Annotated[bool, typer.Option("--exact", help="An audit: sums and scores in float64.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the choice of scored sequences.")] = 0,
    out: Out = Path("fastprobe-out"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How linear every element of a model is, layer by layer."""
    started = time.perf_counter()
    loaded, tokenizer = load_model(model, dtype, device)
    batches, origin = named_batches(
        loaded, tokenizer, model, text, dataset, split, text_column, tokens, max_seq_len, batch_size
    )
    if resume and not quiet and not (out / FILE).exists():
        note(f"--resume: there is nothing in {out} to go on with; this is a first run")
    keeps(make_folder(out) / FILE)
    scan = fp.linearity(
        loaded,
        batches,
        elements=None if elements is None else elements.split(","),
        layers=None if layers is None else [i for part in layers.split(",") for i in range(*parse_range(part))],
        spans=spans,
        folds=folds,
        score_sequences="all" if score_sequences == "all" else integer("--score-sequences", score_sequences),
        objective=objective,
        fit=fp.LeastSquares(alpha=alpha),
        cka=cka,
        backend=backend,
        exact=exact,
        seed=seed,
        progress=not quiet,
        checkpoint=Checkpoint(out, origin, resume=resume),
    )
    scan.config.update(origin | {"device": str(loaded.device), "versions": VERSIONS})
    scan.config["seconds"]["total"] = round(time.perf_counter() - started, 3)
    _finish(scan, out, json, quiet, moments=False)  # the checkpoint holds them already
    if not quiet:
        split_of_time = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in scan.config["seconds"].items())
        note(f"time: {split_of_time}")


@app.command()
def points(
    model: Model = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Where the points of a model were found. Their identities are checked on a batch."""
    loaded, tokenizer = load_model(model, dtype, device)
    found = resolve(loaded)
    text = "The layers of a transformer pass one state along; each reads it and adds to it."
    batches = fp.token_batches([text] * 2, tokenizer, max_seq_len=16)  # no model is too short for that
    batch = {k: v.to(loaded.device) for k, v in next(iter(batches)).items()}
    checked = check_points(loaded, found, batch)
    if json:
        rows = [vars(identity) | {"holds": identity.holds} for identity in checked.identities]
        places = {
            name: f"{'output' if p.output else 'input'} of {p.module or 'layer'}" for name, p in found.places.items()
        }
        document = {"layers": len(found.layers), "layout": found.layout.family, "points": places, "identities": rows}
        typer.echo(dumps(document))
    else:
        stdout.print(f"{len(found.layers)} layers laid out as in {found.layout.family}", highlight=False)
        for name, place in found.places.items():
            side = "output" if place.output else "input"
            stdout.print(f"  {name:<11} {side} of {place.module or 'the layer'}", highlight=False)
        for name, other in found.aliases.items():
            stdout.print(f"  {name:<11} is {other}", highlight=False)
        for name, (first, second) in found.sums.items():
            stdout.print(f"  {name:<11} is {first} + {second}", highlight=False)
        stdout.print(identities_table(checked.identities))
    if not all(identity.holds for identity in checked.identities):
        why = checked.not_finite or "the points of this model are not where they seem"
        note(f"an identity fails: {why}, and a scan would refuse it")
        raise typer.Exit(1)


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of scans of one model with the same options.")],
    out: Out,
    alpha: Annotated[float, typer.Option(help="Ridge penalty.")] = 0.0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add the moments of several scans up and score their sum. Columns that need the tokens stay empty."""
    _finish(merge_scans(folders, fp.LeastSquares(alpha=alpha)), out, json, quiet)


def _finish(scan: fp.LinearityScan, out: Path, json: bool, quiet: bool, moments: bool = True) -> None:
    scan.save(out, moments=moments)
    scan.plot(out / FIGURE, "nonlinearity" if scan.rows[0]["nonlinearity"] is not None else "r2")
    if json:
        typer.echo(scan.to_json())
    else:
        stdout.print(linearity_table(scan.rows))
    if quiet:
        return
    for remark in dict.fromkeys(row["note"] for row in scan.rows if row["note"]):
        note(f"* {remark}")
    if scan.moments is not None:
        plan = scan.moments.plan
        remark_on_few(scan.moments.tokens, max(plan.widths[x] for x, y in plan.pairs if x == y))
    note(f"{out}: scores.json, scores.csv, {FILE}, {FIGURE}")
