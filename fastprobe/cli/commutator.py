"""``fastprobe commutator``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.cli.app import app
from fastprobe.cli.option_groups import takes
from fastprobe.cli.options import (
    BOTH_PARTS,
    Json,
    Out,
    Overwrite,
    Quiet,
    SkipParts,
    SkipScale,
    StackName,
    integer,
    scaled_skips,
)
from fastprobe.cli.output import show
from fastprobe.cli.source import Source
from fastprobe.reordering.table import pairs_table
from fastprobe.results.kept import check_not_replaced
from fastprobe.runtime.files import make_folder


@app.command()
@takes(Source, tokens="16k")
def commutator(
    source: Source,
    state: Annotated[
        str, typer.Option(help="State to compare on: own, the input of the pair's first layer; or that of one layer.")
    ] = "own",
    skip_scale: SkipScale = None,
    skip_parts: SkipParts = BOTH_PARTS,
    stack: StackName = None,
    out: Out = Path("fastprobe-out/commutator"),
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how far each pair of layers is from commuting. Each pair runs by itself."""
    check_not_replaced(out, fp.Commutators.kind, (f"{fp.Commutators.kind}.png",), overwrite=overwrite)
    loaded, tokenizer = source.load_model()
    batches, provenance = source.load_batches(loaded, tokenizer)
    at = state if state == "own" else integer("--state", state)
    make_folder(out)
    provenance |= {"skip_scale": skip_scale, "skip_parts": skip_parts} if skip_scale else {}
    with scaled_skips(loaded, skip_scale, skip_parts):
        result = fp.commutator(loaded, batches, state=at, stack=stack, progress=not quiet)
    show(
        result,
        pairs_table(result.rows),
        provenance=provenance | {"device": str(loaded.device)},
        out=out,
        metric=result.metric,
        json=json,
        quiet=quiet,
    )
