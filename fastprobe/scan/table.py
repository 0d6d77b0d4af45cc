"""The table of a linearity scan."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from fastprobe.results.table import cell, empty_table

# header, key of the row, decimals (None: one digit and an exponent)
_LINEARITY = (
    ("nonlin", "nonlinearity", 4),
    ("± se", "r2_cv_se", 4),
    ("r2", "r2", 3),
    ("resid", "r2_residual", 3),
    ("cos_cv", "cosine_cv", 3),
    ("cone", "cone", 3),
    ("cka", "cka", 3),
    ("rank", "rank", 0),
    ("bound", "error_bound", None),
)


def linearity_table(rows: list[dict[str, Any]]) -> Table:
    """One line a row; a column that no row has is left out."""
    columns = [column for column in _LINEARITY if any(row[column[1]] is not None for row in rows)]
    table = empty_table()
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
            *(cell(row[key], decimals) for _, key, decimals in columns),
        )
    return table
