"""What a command that runs layers leaves and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.console import RenderableType

from fastprobe.cli.app import VERSIONS, note, stdout
from fastprobe.errors import InputError
from fastprobe.reordering.rows import HEAD_COLUMNS, STATE_COLUMNS
from fastprobe.results.result import BY_DEPTH, Result

FEW = 0.1
"""How much higher held-out errors may be for want of tokens before it is said."""


def drawn_column(metric: str, model: str, has_head: bool, depths: bool = False) -> str:
    """The column to draw, if there will be such a one."""
    if metric == "auto":
        return "delta_loss" if has_head else "relative_l2"
    if metric in HEAD_COLUMNS and not has_head:
        raise InputError(
            f"--metric: {model} has no language-model head and so no {metric}; name a model that was saved with one, "
            f"or a column of its states: {', '.join(STATE_COLUMNS)}"
        )
    by_depth = [column + BY_DEPTH for column in STATE_COLUMNS if depths]
    known = [*STATE_COLUMNS, *by_depth, *(HEAD_COLUMNS if has_head else ())]
    if metric not in known:
        raise InputError(f"--metric: {metric!r} is not one of {', '.join(known)}")
    return metric


def remark_on_few(tokens: int, columns: int) -> None:
    """Say so where maps of so many columns have seen too few tokens for their held-out scores to have settled.

    Of n tokens and d columns the error that a least-squares map makes on others is d / (n - d) higher than with many.
    """
    if tokens <= columns:
        note(f"{tokens:,} tokens, and maps of {columns:,} columns fit anything to as few; read more (--tokens)")
    elif (more := columns / (tokens - columns)) > FEW:
        note(f"{tokens:,} tokens are few for maps of {columns:,} columns: held-out errors are some {more:.0%} higher")


def show(
    result: Result,
    origin: dict[str, Any],
    out: Path,
    metric: str,
    table: RenderableType,
    json: bool,
    quiet: bool,
    *files: str,
) -> None:
    """Save, draw and print a result of a model's layers run in one way or another."""
    result.config.update(origin | {"versions": VERSIONS})
    result.save(out)
    picture = f"{result.kind}.png"
    drawn = metric if any(row.get(metric) is not None for row in result.rows) else result.metric
    result.plot(out / picture, drawn)
    if json:
        typer.echo(result.to_json())
    else:
        stdout.print(table)
    if not quiet:
        if drawn != metric:
            note(f"no row has {metric}: nothing was to be predicted; the picture is of {drawn}, read more (--tokens)")
        if lost := [row for row in result.rows if "relative_l2" in row and row["relative_l2"] is None]:
            note(f"{len(lost)} rows are empty: their states became NaN or infinite; --dtype float32 may hold them")
        ran, naive = result.config["layer_forwards"], result.config["layer_forwards_naive"]
        note(f"{len(result.rows)} rows from {ran} layer runs a batch; one by one they would take {naive}")
        note(f"{out}: {', '.join(['scores.json', 'scores.csv', *files, picture])}")
