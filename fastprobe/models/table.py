"""The table of identities that hold where the points of a model were found right."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from fastprobe.models.identities import Identity
from fastprobe.results.table import empty_table, text_columns


def identities_table(identities: Sequence[Identity]) -> Table:
    """Return a table with one line an identity."""
    table = empty_table()
    text_columns(table, "layer", "identity", "error", "allowed", "")
    for i in identities:
        table.add_row(str(i.layer), i.equation, f"{i.error:.1e}", f"{i.tolerance:.0e}", "holds" if i.holds else "FAILS")
    return table
