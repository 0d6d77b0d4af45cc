"""``fastprobe linearity``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.cli.app import app, made_by, note, register_resumable
from fastprobe.cli.option_groups import takes
from fastprobe.cli.options import Alpha, Full, Json, Out, Overwrite, Quiet, scored_sequences
from fastprobe.cli.scan_output import PICTURE, show_scan
from fastprobe.cli.source import Source
from fastprobe.models.points import ELEMENTS, parse_range
from fastprobe.results.kept import check_not_replaced
from fastprobe.runtime.files import make_folder
from fastprobe.scan.checkpoint import FILE, Checkpoint

ELEMENTS_HELP = f"Comma-separated, of {', '.join(ELEMENTS)}; by default all that the model has."


@app.command()
@takes(Source, tokens="100k")
def linearity(
    source: Source,
    elements: Annotated[str | None, typer.Option(help=ELEMENTS_HELP)] = None,
    layers: Annotated[str | None, typer.Option(help="Layers and half-open ranges, like 0-4,7.")] = None,
    spans: Annotated[str, typer.Option(help="all, none, or half-open ranges like 2-5,0-3.")] = "none",
    folds: Annotated[int, typer.Option(help="Folds of r2_cv; 0 for none.")] = 5,
    score_sequences: Annotated[str, typer.Option(help="Sequences for the cosine columns: a number or all.")] = "64",
    objective: Annotated[
        str, typer.Option(help="least-squares; or cosine, to fit unit-norm targets too.")
    ] = "least-squares",
    alpha: Alpha = 0.0,
    cka: Annotated[str, typer.Option(help="Rows with a CKA: auto (y no wider than x), all or none.")] = "auto",
    backend: Annotated[str, typer.Option(help="auto, cuda, triton, cpu or torch.")] = "auto",
    exact: Annotated[bool, typer.Option("--exact", help="Audit: compute sums and scores in float64.")] = False,
    seed: Annotated[int, typer.Option(help="Seed that chooses the sequences for the cosine columns.")] = 0,
    out: Out = Path("fastprobe-out/linearity"),
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint in --out.")] = False,
    full: Full = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score how linear each element of a model is, layer by layer."""
    started = time.perf_counter()
    check_not_replaced(
        out, fp.LinearityScan.kind, (FILE, PICTURE), progress_file=FILE, resume=resume, overwrite=overwrite
    )
    loaded, tokenizer = source.load_model()
    batches, provenance = source.load_batches(loaded, tokenizer)
    if resume and not quiet and not (out / FILE).exists():
        note(f"--resume: there is nothing in {out} to resume from; this is a first run")
    register_resumable(make_folder(out) / FILE)
    scan = fp.linearity(
        loaded,
        batches,
        elements=None if elements is None else elements.split(","),
        layers=None if layers is None else [i for part in layers.split(",") for i in range(*parse_range(part))],
        spans=spans,
        folds=folds,
        score_sequences=scored_sequences(score_sequences),
        objective=objective,
        method=fp.LeastSquares(alpha=alpha),
        cka=cka,
        backend=backend,
        exact=exact,
        seed=seed,
        progress=not quiet,
        checkpoint=Checkpoint(out, provenance, resume=resume),
    )
    scan.config.update(provenance | {"device": str(loaded.device)} | made_by())
    scan.config["seconds"]["total"] = round(time.perf_counter() - started, 3)
    scan.save(out, moments=False)  # the checkpoint holds them already
    show_scan(scan, out, full=full, json=json, quiet=quiet)
    if not quiet:
        note("time: " + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in scan.config["seconds"].items()))
