"""``fastprobe ablate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import fastprobe as fp
from fastprobe.ablations.table import ablations_table
from fastprobe.cli.app import app, note, register_resumable
from fastprobe.cli.option_groups import takes
from fastprobe.cli.options import DrawnMetric, Json, Out, Overwrite, Quiet, StackName, number
from fastprobe.cli.output import drawn_column, note_few_tokens, show
from fastprobe.cli.processes import prints
from fastprobe.cli.source import Source
from fastprobe.errors import InputError
from fastprobe.models.calling import has_language_head
from fastprobe.models.linear_mlp import check_linear_mlp
from fastprobe.models.points import parse_range
from fastprobe.reordering.effects import predicted_batches
from fastprobe.results.kept import check_not_replaced
from fastprobe.runtime.files import make_folder
from fastprobe.runtime.journal import FILE as JOURNAL
from fastprobe.runtime.journal import Journal


@app.command()
@takes(Source, tokens="16k")
def ablate(
    source: Source,
    elements: Annotated[
        str,
        typer.Option(help="Comma-separated: mlp, attn (bare), ffn, attention (with skip connection and norm), layer."),
    ] = "mlp",
    mode: Annotated[
        str, typer.Option(help="Comma-separated: zero, mean, resample, random_init, linear, identity.")
    ] = "zero",
    layers: Annotated[
        list[str],
        typer.Option(help="each; forward or backward (cumulative); or sets like 0-4,7, given several times."),
    ] = ["each"],  # noqa: B006, Typer wants a list
    folds: Annotated[
        int, typer.Option(help="Folds of linear maps; each is fitted without the tokens it replaces. 0: one map.")
    ] = 5,
    alpha: Annotated[
        str, typer.Option(help="Ridge penalty of linear maps; auto: chosen by cross-validation.")
    ] = "auto",
    metric: DrawnMetric = "auto",
    seed: Annotated[int, typer.Option(help="Seed of resample, random_init and masked tokens.")] = 0,
    write: Annotated[
        Path | None,
        typer.Option(help="Save the model with linear MLPs in one set of --layers to this folder (--mode linear)."),
    ] = None,
    stack: StackName = None,
    out: Out = Path("fastprobe-out/ablate"),
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the finished rows in --out.")] = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove or replace elements of a model and measure the damage."""
    sets = _sets_of_layers(layers)
    if write is not None and (elements != "mlp" or mode != "linear" or isinstance(sets, str) or len(sets) > 1):
        raise InputError("--write: needs --elements mlp --mode linear and one set of --layers, like 2-5")
    check_not_replaced(
        out,
        fp.Ablations.kind,
        (JOURNAL, f"{fp.Ablations.kind}.png"),
        progress_file=JOURNAL,
        resume=resume,
        overwrite=overwrite,
    )
    if write is not None:
        _check_unused(write, source.model, overwrite)
        make_folder(write)  # at once: if a file has this name, Transformers writes nothing and does not fail
    loaded, tokenizer = source.load_model(head=True)
    if write is not None:
        for layer in sets[0]:
            check_linear_mlp(loaded, int(layer))
    batches, provenance = source.load_batches(loaded, tokenizer)
    metric = drawn_column(metric, type(loaded).__name__, has_language_head(loaded))
    register_resumable(out / JOURNAL)
    damage = fp.ablation(
        loaded,
        predicted_batches(loaded, batches, tokenizer, seed),
        elements=elements.split(","),
        mode=mode.split(","),
        layers=sets,
        folds=folds,
        alpha=None if alpha == "auto" else number("--alpha", alpha),
        seed=seed,
        stack=stack,
        progress=not quiet,
        journal=Journal(out, provenance | {"seed": seed}, resume=resume),
    )
    show(
        damage,
        ablations_table(damage.rows, damage.config["columns"]),
        provenance=provenance | {"device": str(loaded.device)},
        out=out,
        metric=metric,
        json=json,
        quiet=quiet,
        more_files=(JOURNAL,),
    )
    if damage.maps and not quiet:
        note_few_tokens(damage.config["tokens"], max(len(fitted.coef) for fitted in damage.maps.values()))
    if write is not None and prints():
        for layer in sets[0]:
            fp.write_linear_mlp_(loaded, int(layer), damage.maps[f"mlp.{layer}"])
        loaded.save_pretrained(write)
        tokenizer.save_pretrained(write)
        if not quiet:
            note(f"{write}: the model with linear FFNs in layers {', '.join(layers)}, for from_pretrained")


def _check_unused(folder: Path, model: str | None, overwrite: bool) -> None:
    """Refuse to write a model into a folder that has files, or over the model that is read.

    Raises:
        InputError: the folder is that of the model, or it has files and ``overwrite`` is false.
    """
    if model is not None and folder.exists() and folder.resolve() == Path(model).resolve():
        raise InputError(f"--write: {folder} holds the model that is read; name another folder")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"--write: {folder} holds files; name another folder, or replace its model with --overwrite")


def _sets_of_layers(layers: list[str]) -> str | list[list[int]]:
    """Read ``--layers``: the name of a sweep, or sets of layers."""
    if len(layers) == 1 and layers[0].isalpha():
        return layers[0]
    return [[i for part in one.split(",") for i in range(*parse_range(part))] for one in layers]
