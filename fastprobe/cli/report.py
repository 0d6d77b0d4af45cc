"""``fastprobe report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.cli.app import app
from fastprobe.results.report import render
from fastprobe.runtime.files import write_text


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder that a command wrote with --out.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Page to write; by default in the folder.")] = None,
) -> None:
    """Write an HTML page of a saved result, with pictures of all columns that show their numbers."""
    result = fp.load(folder)
    path = out or folder / "report.html"
    write_text(path, render(result))
    typer.echo(path)
