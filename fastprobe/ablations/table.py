"""The table of an ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fastprobe.reordering.table import orders_table


def ablations_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with one line an element, mode and set of layers, the unedited model first.

    Of many rows it shows those that change most.
    """
    names = ["the model itself", *(f"{row['element']} {row['layers']} {row['mode']}" for row in rows[1:])]
    return orders_table([row | {"name": name} for row, name in zip(rows, names, strict=True)], "ablation")
