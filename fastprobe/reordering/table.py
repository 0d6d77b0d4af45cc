"""Tables of orders and of pairs of layers. Of many rows they show those with the largest change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fastprobe.results.result import BY_DEPTH
from fastprobe.results.table import (
    LINES,
    WIDTH,
    cell,
    cells,
    empty_table,
    filled,
    name_column,
    number_columns,
    spread,
    text_columns,
)

COLUMNS = (
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
"""Header, key of the row, decimals."""

NAME = 20
"""Letters of an order's name that fit beside many numbers."""

DEPTHS = 12
"""Depths that fit, with two decimals."""

BASELINE = "baseline"
"""Name of the baseline's row. Its order is called ``identity`` in data."""


def orders_table(rows: Sequence[dict[str, Any]], header: str = "order") -> Table:
    """Return a table with one line an order, the baseline first. A caption counts the rows that do not fit.

    Of many orders the table shows those with the largest ``delta_loss``, or ``relative_l2`` if no row has a loss.

    Args:
        rows: of :class:`~fastprobe.reordering.commutativity.OrderEffects`.
        header: of the names.
    """
    columns = filled(COLUMNS, rows)
    table = empty_table()
    name_column(table, header)
    number_columns(table, *(column[0] for column in columns))
    shown, table.caption = _named_rows(rows)
    for name, row in shown:
        table.add_row(name, *cells(columns, row))
    return table


def depths_table(rows: Sequence[dict[str, Any]], metric: str = "relative_l2") -> Table:
    """Return a table with the rows of :func:`orders_table` and one column a depth, evenly spaced if not all fit.

    Args:
        rows: with the columns of ``depths=True``.
        metric: the column to show; ``relative_l2`` in place of one that only final states have.
    """
    column = metric.removesuffix(BY_DEPTH)
    if column + BY_DEPTH not in rows[0]:
        column = "relative_l2"
    depths = spread(len(rows[0][column + BY_DEPTH]), DEPTHS)
    decimals = min(4, (WIDTH - NAME) // len(depths) - 3)  # 3: a digit, the point, a space
    header = next(header for header, key, _ in COLUMNS if key == column)
    table = empty_table()
    name_column(table, f"{header} after step")
    number_columns(table, *(str(k + 1) for k in depths))
    shown, table.caption = _named_rows(rows)
    for name, row in shown:
        values = row[column + BY_DEPTH]
        table.add_row(name, *(cell(values[k] if k < len(values) else None, decimals) for k in depths))
    return table


def pairs_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with one line a pair of layers. Of many pairs it shows those with the largest ``relative_l2``."""
    columns = [("rel l2", "relative_l2", 4), ("± se", "relative_l2_se", 4), ("cosine", "cosine", 4)]
    columns.append(("± se", "cosine_se", 4))
    table = empty_table()
    text_columns(table, "layers")
    number_columns(table, *(column[0] for column in columns))
    shown, table.caption = _largest(rows, LINES, "relative_l2")
    for row in shown:
        table.add_row(f"{row['i']} {row['j']}", *cells(columns, row))
    return table


def _named_rows(rows: Sequence[dict[str, Any]]) -> tuple[list[tuple[str, dict[str, Any]]], str | None]:
    """Return the rows of orders that fit, each after its name, and a caption if others are hidden."""
    baseline, *others = rows
    has_loss = any(row.get("delta_loss") is not None for row in others)
    shown, caption = _largest(others, LINES - 1, "delta_loss" if has_loss else "relative_l2")
    return [(BASELINE, baseline), *((row["name"] or row["order"], row) for row in shown)], caption


def _largest(rows: Sequence[dict[str, Any]], room: int, column: str) -> tuple[Sequence[dict[str, Any]], str | None]:
    """Return the rows that fit, and a caption if others are hidden.

    Args:
        rows: without the baseline.
        room: number of rows that fit. If all do, they keep their order.
        column: of many rows, those with the largest numbers in it are returned, the largest first. A row without a
            number counts as infinite, because its states are NaN or infinite.
    """
    if len(rows) <= room:
        return rows, None
    shown = sorted(rows, key=lambda row: math.inf if row[column] is None else row[column], reverse=True)[:room]
    return shown, f"{len(rows) - room} rows hidden; these have the largest {column}. scores.csv has all rows."
