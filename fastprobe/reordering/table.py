"""Tables of orders and of pairs of layers."""

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


def orders_table(rows: Sequence[dict[str, Any]], header: str = "order") -> Table:
    """Return a table with one line an order, the baseline first; of many orders, those that change most.

    Args:
        rows: of :class:`~fastprobe.reordering.commutativity.OrderEffects`.
        header: of the names.
    """
    columns = filled(COLUMNS, rows)
    table = empty_table()
    name_column(table, header)
    number_columns(table, *(column[0] for column in columns))
    for row in _most_changed(rows):
        table.add_row(row["name"] or row["order"], *cells(columns, row))
    return table


def depths_table(rows: Sequence[dict[str, Any]], metric: str = "relative_l2") -> Table:
    """Return a table with the lines of :func:`orders_table` and one column a depth, evenly spaced if not all fit.

    Args:
        rows: with the columns of ``depths=True``.
        metric: the column to show; ``relative_l2`` in place of one that only final states have.
    """
    column = metric.removesuffix(BY_DEPTH)
    if column + BY_DEPTH not in rows[0]:
        column = "relative_l2"
    shown = spread(len(rows[0][column + BY_DEPTH]), DEPTHS)
    decimals = min(4, (WIDTH - NAME) // len(shown) - 3)  # 3: a digit, the point, a space
    header = next(header for header, key, _ in COLUMNS if key == column)
    table = empty_table()
    name_column(table, f"{header} after step")
    number_columns(table, *(str(k + 1) for k in shown))
    for row in _most_changed(rows):
        values = row[column + BY_DEPTH]
        numbers = (cell(values[k] if k < len(values) else None, decimals) for k in shown)
        table.add_row(row["name"] or row["order"], *numbers)
    return table


def pairs_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with one line a pair of layers; of many pairs, those furthest from commuting."""
    if len(rows) > LINES:
        rows = sorted(rows, key=_change, reverse=True)[:LINES]
    columns = [("rel l2", "relative_l2", 4), ("± se", "relative_l2_se", 4), ("cosine", "cosine", 4)]
    columns.append(("± se", "cosine_se", 4))
    table = empty_table()
    text_columns(table, "layers")
    number_columns(table, *(column[0] for column in columns))
    for row in rows:
        table.add_row(f"{row['i']} {row['j']}", *cells(columns, row))
    return table


def _most_changed(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return the rows that fit: the baseline, and of the others those that change most."""
    if len(rows) <= LINES:
        return rows
    return [rows[0], *sorted(rows[1:], key=_change, reverse=True)[: LINES - 1]]


def _change(row: dict[str, Any]) -> float:
    """Return how much an order changes the final states; infinity for states that are NaN or infinite."""
    return math.inf if row["relative_l2"] is None else row["relative_l2"]
