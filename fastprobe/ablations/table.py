"""The table of an ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fastprobe.regression.evidence import tokens_for_map
from fastprobe.reordering.table import orders_table


def ablations_table(rows: Sequence[dict[str, Any]], columns: int = 0) -> Table:
    """Return a table with one line an element, mode and set of layers, the baseline (the unedited model) first.

    Of many rows it shows those of :func:`~fastprobe.reordering.table.orders_table`. Rows of linear maps are marked
    ``*`` if their tokens are too few.

    Args:
        rows: of :class:`~fastprobe.ablations.ablation.Ablations`.
        columns: input columns of the largest linear map.
    """
    few = bool(tokens_for_map(rows[0]["tokens"], columns)) if columns else False
    marks = ["*" if few and row["mode"] == "linear" else "" for row in rows]
    names = [f"{row['element']} {row['layers']} {row['mode']}{mark}" for row, mark in zip(rows, marks, strict=True)]
    return orders_table([row | {"name": name} for row, name in zip(rows, names, strict=True)], "ablation")
