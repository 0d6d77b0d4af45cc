"""Results as text for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.table import Table

from fastprobe.results.result import BY_DEPTH

# header, key of the row, decimals (None: one digit and an exponent)
_LINEARITY = (
    ("nonlin", "nonlinearity", 4),
    ("± se", "r2_cv_se", 4),
    ("r2", "r2", 3),
    ("resid", "r2_residual", 3),
    ("cos_cv", "cosine_cv", 3),
    ("aniso", "anisotropy", 3),
    ("cka", "cka", 3),
    ("rank", "rank", 0),
    ("bound", "error_bound", None),
)


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")


def linearity_table(rows: list[dict[str, Any]]) -> Table:
    """One line a row; a column that no row has is left out."""
    columns = [column for column in _LINEARITY if any(row[column[1]] is not None for row in rows)]
    table = _table()
    table.add_column("element", no_wrap=True)
    table.add_column("layer", no_wrap=True)
    for header, _, _ in columns:
        table.add_column(header, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        if previous is not None and row["element"] != previous:
            table.add_row()
        previous = row["element"]
        where = str(row["layer"]) if row["layer"] is not None else f"{row['start']}-{row['stop']}"
        table.add_row(
            row["element"],
            where + (" *" if row["note"] else ""),
            *(_cell(row[key], decimals) for _, key, decimals in columns),
        )
    return table


_ORDERS = (
    ("loss", "loss", 3),
    ("Δ loss", "delta_loss", 3),
    ("± se", "delta_loss_se", 3),
    ("accuracy", "accuracy", 3),
    ("top1", "top1_agreement", 3),
    ("kl", "kl", 3),
    ("cosine", "cosine", 4),
    ("rel l2", "relative_l2", 4),
    ("± se", "relative_l2_se", 4),
)
WIDTH = 80
"""Columns of a terminal."""

NAME = 20
"""Letters of the name of an order that there is room for beside many numbers."""

STATES = 13
"""States that a table has room for besides, in whole percent."""

DEPTHS = 12
"""Depths that it has room for, with two decimals."""

LINES = 40
"""Orders that a table shows; the file has all of them."""


def orders_table(rows: list[dict[str, Any]], what: str = "order") -> Table:
    """One line an order, the model's own first; of many, those that change most."""
    columns = [column for column in _ORDERS if any(row[column[1]] is not None for row in rows)]
    table = _named_table(what, [header for header, _, _ in columns])
    for row in _most_changed(rows):
        table.add_row(row["name"] or row["order"], *(_cell(row[key], decimals) for _, key, decimals in columns))
    return table


def depths_table(rows: list[dict[str, Any]], metric: str = "relative_l2") -> Table:
    """The lines of :func:`orders_table`, a column a depth; of deep models those that fit, as far apart as can be.

    Args:
        rows: with the columns of ``depths=True``.
        metric: what is shown; ``relative_l2`` in place of a column that only final states have.
    """
    column = metric.removesuffix(BY_DEPTH)
    if column + BY_DEPTH not in rows[0]:
        column = "relative_l2"
    shown = _spread(len(rows[0][column + BY_DEPTH]), DEPTHS)
    decimals = min(4, (WIDTH - NAME) // len(shown) - 3)  # 3: a digit, the point, a space
    header = next(header for header, key, _ in _ORDERS if key == column)
    table = _named_table(f"{header} after step", [str(k + 1) for k in shown])
    for row in _most_changed(rows):
        values = row[column + BY_DEPTH]
        cells = (_cell(values[k] if k < len(values) else None, decimals) for k in shown)
        table.add_row(row["name"] or row["order"], *cells)
    return table


def _named_table(what: str, headers: Iterable[str]) -> Table:
    """A table of numbers; where a name is too long it goes on in the next line, and numbers stay whole."""
    table = _table()
    table.add_column(what, overflow="fold")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _most_changed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that a table shows."""
    if len(rows) <= LINES:
        return rows
    return [rows[0], *sorted(rows[1:], key=_change, reverse=True)[: LINES - 1]]


def _spread(count: int, room: int) -> list[int]:
    """Places of those that fit, of so many, the first and the last among them."""
    return [round(place) for place in np.linspace(0, count - 1, min(count, room))]


def _change(row: dict[str, Any]) -> float:
    """How much an order changes; states that left the range of numbers change most."""
    return math.inf if row["relative_l2"] is None else row["relative_l2"]


def ablations_table(rows: list[dict[str, Any]]) -> Table:
    """One line an element, mode and set of layers, the model itself first; of many, those that change most."""
    named = [{"name": "the model itself"}]
    named += [{"name": f"{row['element']} {row['layers']} {row['mode']}"} for row in rows[1:]]
    return orders_table([row | name for row, name in zip(rows, named, strict=True)], "ablation")


def probes_table(probes: Any, metric: str = "r2_cv") -> Table:
    """One line a task, a column a state, in percent, and where the task is learnt; order by order.

    Of deep models the states that fit are shown, as far apart as can be.
    """
    matrices = [probes.matrix(metric, order) for order in probes.orders]
    shown = _spread(max(matrix.shape[1] for matrix in matrices), STATES)
    names = {row["order"]: row["name"] for row in probes.rows}
    table = _table()
    table.add_column(f"{metric}, %", no_wrap=True)
    for state in shown:
        table.add_column(str(state), justify="right", no_wrap=True)
    table.add_column("learnt at", justify="right", no_wrap=True)
    for number, (order, matrix) in enumerate(zip(probes.orders, matrices, strict=True)):
        if len(matrices) > 1:
            if number:
                table.add_row()
            table.add_row(("the model itself" if not number else names[order] or order)[:NAME])
        expected = probes.expected_state(order)
        for task, values in zip(probes.tasks, matrix, strict=True):
            percent = [None if k >= len(values) or np.isnan(values[k]) else 100 * values[k] for k in shown]
            table.add_row(task, *(_cell(value, 0) for value in percent), _cell(expected[task], 2))
    return table


def pairs_table(rows: list[dict[str, Any]]) -> Table:
    """One line a pair of layers; of many, those furthest from commuting."""
    if len(rows) > LINES:
        rows = sorted(rows, key=_change, reverse=True)[:LINES]
    table = _table()
    table.add_column("layers", no_wrap=True)
    for header in ("rel l2", "± se", "cosine", "± se"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        numbers = (row[key] for key in ("relative_l2", "relative_l2_se", "cosine", "cosine_se"))
        table.add_row(f"{row['i']} {row['j']}", *(_cell(number, 4) for number in numbers))
    return table


def costs_table(config: dict[str, Any]) -> Table:
    """What a model that was trained takes, and what BERT of the size that was asked for would."""
    table = _table()
    table.add_column("", no_wrap=True)
    for header in ("parameters", "in layers", "FLOP/token", "steps"):
        table.add_column(header, justify="right", no_wrap=True)
    ours, theirs = config["costs"], config["costs_of_bert"]
    keys = ("parameters", "layer_parameters", "flops_per_token")
    table.add_row(config["variant"], *(f"{ours[key]:,}" for key in keys), f"{config['steps']:,}")
    table.add_row("bert", *(f"{theirs[key]:,}" for key in keys), f"{config['steps_asked']:,}")
    ratio = config["steps"] / config["steps_asked"]
    table.add_row("ratio", *(f"{ours[key] / theirs[key]:.4f}" for key in keys), f"{ratio:.4f}")
    return table


def losses_table(rows: list[dict[str, Any]]) -> Table:
    """One line a record of a training."""
    table = _table()
    for header in ("step", "tokens", "loss", "held-out", "± se"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        losses = (row[key] for key in ("loss", "held_out_loss", "held_out_loss_se"))
        table.add_row(f"{row['step']:,}", f"{row['tokens']:,}", *(_cell(loss, 3) for loss in losses))
    return table


def claims_table(rows: list[dict[str, Any]]) -> Table:
    """One line a claim of the paper: the section, how surely it is known, whether it holds here, and the numbers."""
    table = _table()
    for header in ("section", "", "here"):
        table.add_column(header, no_wrap=True)
    table.add_column("the paper, and what was found")
    for row in rows:
        verdict = {True: "holds", False: "not seen", None: "-"}[row["holds"]]
        table.add_row(row["section"], f"({row['label']})", verdict, f"{row['claim']} {row['found']}")
    return table


def _cell(value: float | None, decimals: int | None) -> str:
    if value is None:
        return ""
    return (
        f"{value:.0e}" if decimals is None else f"{round(value, decimals) + 0.0:.{decimals}f}"
    )  # no minus before a zero


def identities_table(identities: tuple[Any, ...]) -> Table:
    """One line an identity."""
    table = _table()
    for header in ("layer", "identity", "error", "allowed", ""):
        table.add_column(header, no_wrap=True)
    for i in identities:
        table.add_row(str(i.layer), i.equation, f"{i.error:.1e}", f"{i.tolerance:.0e}", "holds" if i.holds else "FAILS")
    return table


def bench_table(rows: list[dict[str, Any]]) -> Table:
    """One line a kernel, width, dtype and instruction set."""
    table = _table()
    for header in ("operation", "width", "dtype", "instructions"):
        table.add_column(header, no_wrap=True)
    for header in ("GF/s", "peak", "of peak", "x torch", "error"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["operation"],
            str(row["width"]),
            row["dtype"],
            row["instruction_set"],
            f"{row['gflops']:.0f}",
            f"{row['peak_gflops']:.0f}",
            f"{row['of_peak']:.2f}",
            f"{row['times_torch']:.2f}",
            f"{row['error']:.0e}",
        )
    return table


def tuning_table(rows: list[dict[str, Any]]) -> Table:
    """One line a kernel, dtype and class of shapes."""
    table = _table()
    for header in ("kernel", "rows", "width", "x default"):
        table.add_column(header, justify="left" if header == "kernel" else "right", no_wrap=True)
    table.add_column("configuration")
    for row in rows:
        gain = f"{row['times_default']:.2f}"
        table.add_row(row["kernel"], str(row["rows"]), str(row["width"]), gain, row["configuration"])
    return table
