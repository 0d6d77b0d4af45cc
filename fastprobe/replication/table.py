"""The table of claims for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fastprobe.results.table import empty_table, text_columns


def claims_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with one line a claim: its section, its label, the verdict here, the claim and the numbers."""
    table = empty_table()
    text_columns(table, "section", "", "here")
    table.add_column("the paper, and what was found")
    for row in rows:
        verdict = {True: "holds", False: "not seen", None: "-"}[row["holds"]]
        table.add_row(row["section"], f"({row['label']})", verdict, f"{row['claim']} {row['found']}")
    return table
