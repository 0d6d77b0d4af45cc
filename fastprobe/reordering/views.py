"""Views of reordered layers: orders, and the states on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastprobe.results.views import Curve, Dots, Heatmap, View

MOST_ORDERS = 40
"""Orders whose states on the way are shown."""


def order_views(metric: str, rows: Sequence[dict[str, Any]]) -> list[View]:
    """Return the view of one metric of orders: permutations over the layers they keep, other orders as named dots.

    Args:
        metric: the column.
        rows: with a number for the metric, the largest one first.
    """
    kept, values, names = [row["kept"] for row in rows], [row[metric] for row in rows], [*map(name_of, rows)]
    if None not in kept and len(set(kept)) > 1:
        return [Curve(kept, values, names, "layers kept in place", metric)]
    errors = [row.get(f"{metric}_se") or 0.0 for row in rows]
    return [Dots(values, errors, names, metric, "orders, from most to least")]


def depth_views(metric: str, rows: Sequence[dict[str, Any]], matrix: np.ndarray) -> list[View]:
    """Return a heatmap of orders and depths, the orders whose final states change most on top.

    Args:
        metric: the column that the metric of final states has.
        rows: of the orders.
        matrix: ``(orders, depths)``, one line a row.
    """
    change = np.array([row["relative_l2"] for row in rows], dtype=float)
    most = np.argsort(-change)[:MOST_ORDERS]
    depths = [str(depth) for depth in range(1, matrix.shape[1] + 1)]
    return [Heatmap(matrix[most], [name_of(rows[at]) for at in most], depths, "layers that have run", "", metric)]


def name_of(row: dict[str, Any]) -> str:
    """Return the name of the order of a row, or its text if it has none."""
    return row["name"] or row["order"]
