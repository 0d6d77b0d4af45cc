"""The table of an ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fastprobe.reordering.table import orders_table


def ablations_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with one line an element, mode and set of layers, the baseline (the unedited model) first.

    Of many rows it shows those of :func:`~fastprobe.reordering.table.orders_table`.
    """
    named = [row | {"name": f"{row['element']} {row['layers']} {row['mode']}"} for row in rows]
    return orders_table(named, "ablation")
