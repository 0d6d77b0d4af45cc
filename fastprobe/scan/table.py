"""Table of all rows of a linearity scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fastprobe.regression.evidence import is_undecided
from fastprobe.results.table import Column, cell, empty_table, filled, number_columns, text_columns

COLUMNS: list[Column] = [
    ("nonlin", "nonlinearity", 4),
    ("± se", "r2_cv_se", 4),
    ("r2", "r2", 3),
    ("resid", "r2_residual", 3),
    ("cos_cv", "cosine_cv", 3),
    ("aniso", "anisotropy", 3),
    ("cka", "cka", 3),
    ("rank", "rank", 0),
    ("bound", "error_bound", None),
]
FITTED = ("nonlinearity", "r2_cv_se", "r2", "r2_residual", "cosine_cv", "cka")
"""Columns that say nothing if the tokens are too few. The files have their numbers."""

DIGITS = 6
"""Characters of a number. With more, a table of all columns would be wider than a terminal."""


def linearity_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Make a table with one line for each row, marked ``*`` if it has a note. Columns without a number are left out.

    If its tokens are too few, the numbers of the fit are left out.
    """
    columns = filled(COLUMNS, list(rows))
    table = empty_table()
    text_columns(table, "element", "layer")
    number_columns(table, *(header for header, _, _ in columns))
    previous = None
    for row in rows:
        if previous not in (None, row["element"]):
            table.add_row()
        previous = row["element"]
        mark = "*" if row["note"] else ""
        said = {**row, **dict.fromkeys(FITTED)} if is_undecided(row) else row
        numbers = (narrow(said[key], decimals) for _, key, decimals in columns)
        table.add_row(row["element"], place(row) + mark, *numbers)
    return table


def place(row: dict[str, Any]) -> str:
    """Return the layer of a row, or the half-open range of a span."""
    return str(row["layer"]) if row["layer"] is not None else f"{row['start']}-{row['stop']}"


def narrow(value: float | None, decimals: int | None) -> str:
    """Return a number as text of at most :data:`DIGITS` characters, with fewer decimals if it is large."""
    text = cell(value, decimals)
    while decimals and len(text) > DIGITS:
        decimals -= 1
        text = cell(value, decimals)
    return text if len(text) <= DIGITS else cell(value, None)
