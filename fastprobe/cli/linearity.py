"""``fastprobe linearity``."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.cli.app import app, made_by, note, register_resumable
from fastprobe.cli.option_groups import takes
from fastprobe.cli.options import Alpha, Full, Json, Out, Overwrite, Quiet, StackName, scored_sequences
from fastprobe.cli.processes import prints
from fastprobe.cli.scan_output import PICTURE, show_scan
from fastprobe.cli.source import Source
from fastprobe.errors import InputError
from fastprobe.models.calling import device_of
from fastprobe.models.points import ELEMENTS, parse_range
from fastprobe.results.kept import SCORES, check_not_replaced
from fastprobe.runtime.files import make_folder
from fastprobe.runtime.memory import parse_bytes
from fastprobe.scan.checkpoint import FILE, ROWS, Checkpoint

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
    schedule: Annotated[
        str, typer.Option(help="batch: all layers, batch by batch; layer: one layer at a time; auto: as memory allows.")
    ] = "auto",
    memory: Annotated[
        str | None, typer.Option(help="Memory of the scan beyond the weights, like 8GB; by default what is free.")
    ] = None,
    until: Annotated[
        float | None, typer.Option(help="Stop reading when every row's r2_cv_se is below this, as 0.005.")
    ] = None,
    device_map: Annotated[
        str | None, typer.Option(help="auto: weights on GPUs, in host memory and on disk, as they fit; disk: on disk.")
    ] = None,
    keep_moments: Annotated[
        bool, typer.Option("--keep-moments", help=f"Keep {FILE}, for merge and for more tokens.")
    ] = False,
    stack: StackName = None,
    out: Out = Path("fastprobe-out/linearity"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the last checkpoint in --out; also with more --tokens.")
    ] = False,
    full: Full = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score how linear each element of a model is, layer by layer."""
    started = time.perf_counter()
    begun = ROWS if (out / ROWS).exists() else FILE
    check_not_replaced(
        out, fp.LinearityScan.kind, (FILE, ROWS, PICTURE), progress_file=begun, resume=resume, overwrite=overwrite
    )
    if keep_moments and schedule == "layer":
        raise InputError("--keep-moments: a scan layer by layer lets its sums go; use --schedule batch")
    room, offload = 0 if memory is None else parse_bytes(memory), out / ".offload"
    loaded, tokenizer = source.load_model(device_map=device_map, offload_folder=offload, room=room)
    batches, provenance = source.load_batches(loaded, tokenizer)
    if resume and not quiet and not (out / begun).exists():
        note(f"--resume: there is nothing in {out} to resume from; this is a first run")
    for file in (FILE, ROWS):
        register_resumable(make_folder(out) / file)
    extends = resume and (out / SCORES).exists()  # a finished scan, whose moments were kept
    checkpoint = Checkpoint(out, provenance, resume=resume, keep=keep_moments or extends)
    loading = time.perf_counter() - started
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
        stack=stack,
        progress=not quiet,
        checkpoint=checkpoint,
        schedule=schedule,
        memory=memory,
        until=until,
    )
    if not prints():
        return
    scan.config.update(provenance | {"device": str(device_of(loaded))} | made_by())
    total = round(time.perf_counter() - started, 3)
    scan.config["seconds"] = {"load": round(loading, 3), **scan.config["seconds"], "total": total}
    scan.save(out, moments=False)  # the checkpoint holds them already
    checkpoint.finish()
    shutil.rmtree(offload, ignore_errors=True)
    show_scan(scan, out, full=full, json=json, quiet=quiet)
    if not quiet:
        note("time: " + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in scan.config["seconds"].items()))
