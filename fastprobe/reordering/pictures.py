"""Pictures of reordered layers: pairs of layers, orders, and the states on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprobe.results import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pairs(title: str, metric: str, matrix: np.ndarray, partner: str, path: str | Path | None = None) -> Figure:
    """Draw one metric of pairs of layers as a heatmap.

    Args:
        title: text above the picture.
        metric: the column.
        matrix: ``(layers, layers)``, ``nan`` where there is no number.
        partner: text of the vertical axis, like "swapped with layer".
        path: where to save the picture, if anywhere.
    """
    drawing, (axes,) = figure.panels(title)
    figure.heatmap(axes, matrix, x_label="layer", y_label=partner, label=metric)
    return figure.save_figure(drawing, path)


def orders(title: str, metric: str, rows: Sequence[dict[str, Any]], path: str | Path | None = None) -> Figure:
    """Draw one metric of orders: permutations over the layers that they keep in place, other orders as named dots.

    Args:
        title: text above the picture.
        metric: the column.
        rows: with a number for the metric, the largest one first.
        path: where to save the picture, if anywhere.
    """
    drawing, (axes,) = figure.panels(title)
    kept, values = [row["kept"] for row in rows], [row[metric] for row in rows]
    if None not in kept and len(set(kept)) > 1:
        figure.curve(axes, kept, values, x_label="layers kept in place", y_label=metric)
    else:
        figure.dots(
            axes,
            values[::-1],
            [row.get(f"{metric}_se") or 0.0 for row in rows[::-1]],
            x_label=metric,
            names=[row["name"] or row["order"] for row in rows[::-1]],
            y_label="orders, from least to most",
            font_size=8,
        )
    return figure.save_figure(drawing, path)


def profiles(
    title: str,
    metric: str,
    rows: Sequence[dict[str, Any]],
    matrix: np.ndarray,
    path: str | Path | None = None,
) -> Figure:
    """Draw one metric of orders and depths as a heatmap, the orders whose final states change most on top.

    Args:
        title: text above the picture.
        metric: the column that the metric of final states has.
        rows: of the orders.
        matrix: ``(orders, depths)``, one line a row.
        path: where to save the picture, if anywhere.
    """
    drawing, (axes,) = figure.panels(title)
    change = np.array([row["relative_l2"] for row in rows], dtype=float)
    most = np.argsort(-change)[: figure.MOST_NAMES]
    names = [rows[at]["name"] or rows[at]["order"] for at in most]
    figure.named_rows(axes, matrix[most], names, x_label="layers that have run", label=metric)
    return figure.save_figure(drawing, path)
