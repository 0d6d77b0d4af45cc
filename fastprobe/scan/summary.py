"""Summary of a linearity scan: mean, most linear and least linear layer of each element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fastprobe.regression.evidence import is_undecided
from fastprobe.results.table import empty_table, number_columns, text_columns
from fastprobe.scan.table import narrow, place

Row = dict[str, Any]


def headline(rows: Sequence[Row]) -> str:
    """Return the column that sums a scan up: ``nonlinearity``, or ``r2`` for a scan without folds."""
    return "nonlinearity" if any(row["nonlinearity"] is not None for row in rows) else "r2"


def summary_table(rows: Sequence[Row]) -> Table:
    """Make a table with one line for each element and one for all spans.

    A line has the number of rows, the mean of the column :func:`headline`, and its values in the most and in the least
    linear layer. If any row of the scan has a note, a line also has the number of rows with one.
    """
    metric = headline(rows)
    noted = any(row["note"] for row in rows)
    table = empty_table()
    text_columns(table, metric)
    number_columns(table, "rows", "mean", "most linear", "layer", "least linear", "layer")
    if noted:
        number_columns(table, "marked *")
    for element in dict.fromkeys(row["element"] for row in rows):
        of_element = [row for row in rows if row["element"] == element]
        marked = sum(bool(row["note"]) for row in of_element)
        table.add_row(element, str(len(of_element)), *_extremes(of_element, metric), *([str(marked)] * noted))
    return table


def _extremes(rows: Sequence[Row], metric: str) -> list[str]:
    """Return the cells of one line from the mean to the least linear layer.

    Rows with too few tokens do not count. The cells are empty if no other row has a number.
    """
    numbers = [row for row in rows if row[metric] is not None and not is_undecided(row)]
    if not numbers:
        return [""] * 5
    mean = sum(row[metric] for row in numbers) / len(numbers)
    ascending = sorted(numbers, key=lambda row: row[metric])
    most, least = (ascending[0], ascending[-1]) if metric == "nonlinearity" else (ascending[-1], ascending[0])
    return [narrow(mean, 4), narrow(most[metric], 4), place(most), narrow(least[metric], 4), place(least)]
