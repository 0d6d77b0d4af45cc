"""``fastprobe merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.cli.app import app, made_by
from fastprobe.cli.options import Alpha, Full, Json, Out, Overwrite, Quiet
from fastprobe.cli.scan_output import PICTURE, show_scan
from fastprobe.results.kept import check_not_replaced
from fastprobe.scan.checkpoint import FILE
from fastprobe.scan.merging import merge_scans


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of scans of one model with the same options.")],
    out: Out,
    alpha: Alpha = 0.0,
    full: Full = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add the moments of several scans and score the sum. Cosine columns stay empty."""
    check_not_replaced(out, fp.LinearityScan.kind, (FILE, PICTURE), overwrite=overwrite)
    scan = merge_scans(folders, fp.LeastSquares(alpha=alpha))
    scan.config.update(made_by())
    scan.save(out)
    show_scan(scan, out, full=full, json=json, quiet=quiet)
