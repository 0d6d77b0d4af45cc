"""Files, tables and notes that commands leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.console import RenderableType

from fastprobe.cli.app import made_by, note, stdout
from fastprobe.cli.processes import prints
from fastprobe.errors import InputError
from fastprobe.regression.evidence import cannot_be_said, tokens_for_difference, tokens_for_map
from fastprobe.reordering.rows import HEAD_COLUMNS, STATE_COLUMNS
from fastprobe.results.result import BY_DEPTH, Result

FEW = 0.1
"""Relative excess of a held-out error, for want of tokens, from which on a note says so."""


def drawn_column(metric: str, model: str, has_head: bool, depths: bool = False) -> str:
    """Return the column to draw, or refuse one that the result will not have.

    Args:
        metric: the value of ``--metric``.
        model: name of the model's class, for the message.
        has_head: the model has a language-model head.
        depths: the result has columns by depth.
    """
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


def note_few_tokens(tokens: int, columns: int) -> None:
    """Print a note if there are too few tokens for the held-out scores of maps with so many input columns.

    With n tokens and d columns, the held-out error of a least-squares map is d / (n - d) higher than with many tokens.
    """
    if needed := tokens_for_map(tokens, columns):
        note(f"* maps of {columns:,} columns: {cannot_be_said(tokens, needed)} (--tokens)")
    elif (excess := columns / (tokens - columns)) > FEW:
        note(
            f"{tokens:,} tokens are few for maps of {columns:,} columns: held-out errors are about {excess:.0%} higher"
        )


def show(
    result: Result,
    table: RenderableType,
    *,
    provenance: dict[str, Any],
    out: Path,
    metric: str,
    json: bool,
    quiet: bool,
    more_files: tuple[str, ...] = (),
) -> None:
    """Save, draw and print the result of a command that runs layers. Of several processes the first one does it.

    Args:
        result: rows, and a configuration with ``layer_forwards``.
        table: the rows for people.
        provenance: entries of the configuration that say what the result is of.
        out: folder for the files.
        metric: column to draw.
        json: print the JSON document instead of the table.
        quiet: print no notes.
        more_files: files in the folder that the command wrote already.
    """
    if not prints():
        return
    result.config.update(provenance | made_by())
    result.save(out)
    picture = f"{result.kind}.png"
    drawn = metric if any(row.get(metric) is not None for row in result.rows) else result.metric
    result.plot(out / picture, drawn)
    if json:
        typer.echo(result.to_json())
    else:
        stdout.print(table)
    if quiet:
        return
    if drawn != metric:
        note(f"no row has {metric}, because no token was to be predicted; the picture shows {drawn} (more --tokens)")
    if lost := [row for row in result.rows if "relative_l2" in row and row["relative_l2"] is None]:
        note(f"{len(lost)} rows are empty: their states became NaN or infinite; --dtype float32 may hold them")
    if any(row.get("relative_l2") and row.get("relative_l2_se", 0.0) is None for row in result.rows):
        tokens = result.config["tokens"]
        needed = tokens_for_difference(tokens, 0.0, None)
        note(f"one sequence has no standard error: a difference {cannot_be_said(tokens, needed)} (--tokens)")
    ran, naive = result.config["layer_forwards"], result.config["layer_forwards_naive"]
    note(f"{len(result.rows)} rows from {ran} layer runs a batch; one by one they would take {naive}")
    note(f"{out}: {', '.join(['scores.json', 'scores.csv', *more_files, picture])}")
