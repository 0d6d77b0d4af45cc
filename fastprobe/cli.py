"""The commands: parse, call, print."""

from __future__ import annotations

import errno
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import fastprobe as fp
from fastprobe.bench import cpu as bench_cpu
from fastprobe.checkpoint import FILE, Checkpoint
from fastprobe.effects import has_language_head
from fastprobe.errors import FastprobeError, InputError, NumericalError
from fastprobe.journal import FILE as JOURNAL
from fastprobe.journal import Journal
from fastprobe.loading import load_model, load_text, parse_count
from fastprobe.merging import merge_scans
from fastprobe.models.identities import check_points
from fastprobe.models.resolve import resolve
from fastprobe.points import parse_range
from fastprobe.tables import bench_table, identities_table, linearity_table, orders_table, pairs_table
from fastprobe.text import DEMO, MaskedBatches, TokenBatches, default_batch_size

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
stdout = Console(soft_wrap=False)
FIGURE = "linearity.png"
VERSIONS = {"fastprobe": fp.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
INTERRUPTED = 130  # what Typer returns for Ctrl-C, and shells expect
_UsageError: Any = typer.BadParameter.__base__  # Typer carries its own copy of click, and hides it

Model = Annotated[str | None, typer.Argument(help="Hub name or local folder; the demo encoder if none is given.")]
Text = Annotated[list[Path] | None, typer.Option(help="A .txt or .jsonl file; may be given several times.")]
Dataset = Annotated[str | None, typer.Option(help="A name for datasets.load_dataset, or name:configuration.")]
Split = Annotated[str, typer.Option(help="Split of the dataset.")]
TextColumn = Annotated[str, typer.Option(help="Where the text of a .jsonl line or a dataset's row is.")]
Tokens = Annotated[str, typer.Option(help="How many tokens to read, like 5000, 100k or 1.5M.")]
MaxSeqLen = Annotated[int, typer.Option(help="Longest sequence, special tokens included.")]
BatchSize = Annotated[str, typer.Option(help="Sequences a batch; auto makes 4,096 tokens on a CPU, 32,768 elsewhere.")]
Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16 or float64.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no notes.")]


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
    seed: Annotated[int, typer.Option(help="Seed of the choice of scored sequences.")] = 0,
    out: Out = Path("fastprobe-out"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How linear every element of a model is, layer by layer."""
    started = time.perf_counter()
    loaded, tokenizer = load_model(model, dtype, device)
    batches, origin = _batches(
        loaded, tokenizer, model, text, dataset, split, text_column, tokens, max_seq_len, batch_size
    )
    out.mkdir(parents=True, exist_ok=True)
    scan = fp.linearity(
        loaded,
        batches,
        elements=None if elements is None else elements.split(","),
        layers=None if layers is None else [i for part in layers.split(",") for i in range(*parse_range(part))],
        spans=spans,
        folds=folds,
        score_sequences="all" if score_sequences == "all" else _integer("--score-sequences", score_sequences),
        objective=objective,
        fit=fp.LeastSquares(alpha=alpha),
        cka=cka,
        backend=backend,
        seed=seed,
        progress=not quiet,
        checkpoint=Checkpoint(out, origin, resume=resume),
    )
    scan.config.update(origin | {"device": str(loaded.device), "versions": VERSIONS})
    scan.config["seconds"]["total"] = round(time.perf_counter() - started, 3)
    _finish(scan, out, json, quiet, moments=False)  # the checkpoint holds them already
    if not quiet:
        split_of_time = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in scan.config["seconds"].items())
        _note(f"time: {split_of_time}")


@app.command()
def permute(
    model: Model = None,
    text: Text = None,
    dataset: Dataset = None,
    split: Split = "train",
    text_column: TextColumn = "text",
    orders: Annotated[
        list[str],
        typer.Option(
            help="swaps, adjacent, drops[:width=2], repeats, reversals, moves, shuffle:fixed=4,count=100, paper:fix4, "
            "file:orders.txt, an order like 0,2,1,3, ...; may be given several times."
        ),
    ] = ["swaps"],  # noqa: B006, Typer wants a list
    tokens: Tokens = "16k",
    max_seq_len: MaxSeqLen = 128,
    batch_size: BatchSize = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the tokens that an encoder's head is to predict.")] = 0,
    out: Out = Path("fastprobe-out"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the finished orders in --out.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What running the layers in other orders does to the output."""
    loaded, tokenizer = load_model(model, dtype, device, head=True)
    batches, origin = _batches(
        loaded, tokenizer, model, text, dataset, split, text_column, tokens, max_seq_len, batch_size
    )
    depth = len(resolve(loaded).layers)
    effects = fp.commutativity(
        loaded,
        MaskedBatches(batches, tokenizer, seed) if has_language_head(loaded) and not loaded.can_generate() else batches,
        [order for family in orders for order in fp.orders.named(family, depth)],
        progress=not quiet,
        journal=Journal(out, origin | {"seed": seed}, resume=resume),
    )
    _show(effects, origin | {"device": str(loaded.device)}, out, orders_table(effects.rows), json, quiet, JOURNAL)


@app.command()
def commutator(
    model: Model = None,
    text: Text = None,
    dataset: Dataset = None,
    split: Split = "train",
    text_column: TextColumn = "text",
    state: Annotated[
        str, typer.Option(help="own: what the first of two layers gets; or the input of one layer.")
    ] = "own",
    tokens: Tokens = "16k",
    max_seq_len: MaxSeqLen = 128,
    batch_size: BatchSize = "auto",
    dtype: Dtype = "auto",
    device: Device = "auto",
    out: Out = Path("fastprobe-out"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How far every two layers are from commuting, each pair by itself."""
    loaded, tokenizer = load_model(model, dtype, device)
    batches, origin = _batches(
        loaded, tokenizer, model, text, dataset, split, text_column, tokens, max_seq_len, batch_size
    )
    at = state if state == "own" else _integer("--state", state)
    result = fp.commutator(loaded, batches, state=at, progress=not quiet)
    _show(result, origin | {"device": str(loaded.device)}, out, pairs_table(result.rows), json, quiet)


@app.command()
def points(
    model: Model = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Where the points of a model were found, and whether their identities hold on a batch."""
    loaded, tokenizer = load_model(model, dtype, device)
    found = resolve(loaded)
    text = "The layers of a transformer pass one state along; each reads it and adds to it."
    batch = {k: v.to(loaded.device) for k, v in next(iter(fp.token_batches([text] * 2, tokenizer))).items()}
    checked = check_points(loaded, found, batch)
    if json:
        rows = [vars(identity) | {"holds": identity.holds} for identity in checked.identities]
        places = {
            name: f"{'output' if p.output else 'input'} of {p.module or 'layer'}" for name, p in found.places.items()
        }
        document = {"layers": len(found.layers), "layout": found.layout.family, "points": places, "identities": rows}
        typer.echo(_dumps(document))
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
        _note("an identity fails: the points of this model are not where they seem, and a scan would refuse it")
        raise typer.Exit(1)


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


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="What to time: cpu, the C++ kernels.")] = "cpu",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How close the kernels come to what this machine can do."""
    if name != "cpu":
        raise InputError(f"bench: {name!r} is not one of cpu")
    rows = list(tqdm(bench_cpu(), unit=" rows", leave=False, disable=quiet))
    if json:
        typer.echo(
            _dumps(
                {"device": platform.processor() or platform.machine(), "threads": torch.get_num_threads(), "rows": rows}
            )
        )
    else:
        stdout.print(bench_table(rows))


def _batches(
    loaded: Any,
    tokenizer: Any,
    model: str | None,
    text: list[Path] | None,
    dataset: str | None,
    split: str,
    text_column: str,
    tokens: str,
    max_seq_len: int,
    batch_size: str,
) -> tuple[TokenBatches, dict[str, Any]]:
    """The batches that a user's options name, and what there is to say of them in a result."""
    source, named = load_text(text or [], dataset, split)
    automatic = default_batch_size(max_seq_len, loaded.device.type)
    size = automatic if batch_size == "auto" else _integer("--batch-size", batch_size)
    batches = fp.token_batches(
        source, tokenizer, tokens=parse_count(tokens), max_seq_len=max_seq_len, batch_size=size, text_column=text_column
    )
    origin = named | {
        "model": DEMO if model is None else model,
        "max_seq_len": max_seq_len,
        "batch_size": batches.batch_size,
        "token_budget": batches.tokens,
        "model_dtype": str(loaded.dtype).removeprefix("torch."),
    }
    return batches, origin


def _show(
    result: fp.OrderEffects | fp.Commutators,
    origin: dict[str, Any],
    out: Path,
    table: Table,
    json: bool,
    quiet: bool,
    *files: str,
) -> None:
    """Save, draw and print a result of orders."""
    result.config.update(origin | {"versions": VERSIONS})
    result.save(out)
    picture = f"{result.kind}.png"
    result.plot(out / picture, "delta_loss" if result.rows[0].get("delta_loss") is not None else result.metric)
    if json:
        typer.echo(result.to_json())
    else:
        stdout.print(table)
    if not quiet:
        ran, naive = result.config["layer_forwards"], result.config["layer_forwards_naive"]
        _note(f"{len(result.rows)} rows from {ran} layer runs a batch; one by one they would take {naive}")
        _note(f"{out}: {', '.join(['scores.json', 'scores.csv', *files, picture])}")


def _finish(scan: fp.LinearityScan, out: Path, json: bool, quiet: bool, moments: bool = True) -> None:
    scan.save(out, moments=moments)
    scan.plot(out / FIGURE, "nonlinearity" if scan.rows[0]["nonlinearity"] is not None else "r2")
    if json:
        typer.echo(scan.to_json())
    else:
        stdout.print(linearity_table(scan.rows))
    if quiet:
        return
    for note in dict.fromkeys(row["note"] for row in scan.rows if row["note"]):
        _note(f"* {note}")
    _note(f"{out}: scores.json, scores.csv, {FILE}, {FIGURE}")


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _integer(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{option}: {text!r} is not a number") from None


def _dumps(document: Any) -> str:
    import json

    return json.dumps(document, indent=1)


def main() -> None:
    """Run a command; every expected failure is one line on standard error and an exit code."""
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"  # one line, without the line of code
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = INTERRUPTED
    except FastprobeError as error:
        _note(f"fastprobe: {error}")
        code = 1 if isinstance(error, NumericalError) else 2
    except _UsageError as error:
        error.show()
        code = 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM, errno.EDQUOT):
            raise
        kept = "no file is half written, and those that could not be replaced are as they were"
        _note(f"fastprobe: {error.filename or 'output'}: {error.strerror}; {kept}")
        code = 2
    if code == INTERRUPTED:
        _note("fastprobe: interrupted; what was scanned so far is kept in --out: go on with --resume")
    sys.exit(code or 0)
