"""``plot``: results that are there already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.cli.app import app


@app.command()
def plot(
    folder: Annotated[Path, typer.Argument(help="A folder that a command wrote with --out.")],
    metric: Annotated[str | None, typer.Option(help="The column to draw; that of the command by default.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The picture; in the folder by default.")] = None,
) -> None:
    """Draw the picture of a result again, of any of its columns."""
    result = fp.load(folder)
    path = out or folder / f"{result.kind if metric in (None, result.metric) else metric}.png"
    result.plot(path, metric or result.metric)
    typer.echo(path)
