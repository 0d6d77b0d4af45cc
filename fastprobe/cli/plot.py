"""``fastprobe plot``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.cli.app import app
from fastprobe.results.figure import SIZES


@app.command()
def plot(
    folder: Annotated[Path, typer.Argument(help="Folder that a command wrote with --out.")],
    metric: Annotated[str | None, typer.Option(help="Column to draw; by default that of the command.")] = None,
    size: Annotated[str, typer.Option(help=f"{', '.join(SIZES)}; the last two are for a paper.")] = "screen",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Picture: .png, .pdf or .svg; by default in the folder."),
    ] = None,
) -> None:
    """Draw the picture of a saved result, of any of its columns."""
    result = fp.load(folder)
    path = out or folder / f"{result.kind if metric in (None, result.metric) else metric}.png"
    result.plot(path, metric, size=size)
    typer.echo(path)
