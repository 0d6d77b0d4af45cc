"""Tables of text and numbers for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table

WIDTH = 80
"""Columns of a terminal."""

LINES = 40
"""Rows that a table shows; the files have all of them."""

Column = tuple[str, str, int | None]
"""Header, key of the row, decimals (``None`` for one digit and an exponent)."""


def empty_table() -> Table:
    """Return a table without columns, in the style of all tables: no lines, bold headers, captions on the left."""
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", caption_justify="left")


def text_columns(table: Table, *headers: str) -> None:
    """Add columns of text that is never cut or wrapped."""
    for header in headers:
        table.add_column(header, no_wrap=True)


def number_columns(table: Table, *headers: str) -> None:
    """Add columns of numbers, right-aligned and never cut or wrapped."""
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)


def name_column(table: Table, header: str) -> None:
    """Add a column of names. A name that is too long goes on in the next line, so that numbers stay whole."""
    table.add_column(header, overflow="fold")


def filled(columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> list[Column]:
    """Return the columns that have a value in some row."""
    return [column for column in columns if any(row[column[1]] is not None for row in rows)]


def cells(columns: Sequence[Column], row: dict[str, Any]) -> list[str]:
    """Return the texts of a row."""
    return [cell(row[key], decimals) for _, key, decimals in columns]


def cell(value: float | None, decimals: int | None) -> str:
    """Return a number as text; nothing for ``None``.

    Args:
        value: the number.
        decimals: digits after the point; ``None`` for one digit and an exponent.
    """
    if value is None:
        return ""
    if decimals is None:
        return f"{value:.0e}"
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # + 0.0 removes the minus of a zero


def spread(count: int, room: int) -> list[int]:
    """Return at most ``room`` of the numbers below ``count``, evenly spaced, the first and the last included."""
    return [round(place) for place in np.linspace(0, count - 1, min(count, room))]
