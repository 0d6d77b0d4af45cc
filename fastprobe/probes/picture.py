"""The picture of a probe: a line a task over states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastprobe.results import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ORDERS = 3
"""Orders that the label of the horizontal axis names."""


def picture(
    title: str,
    metric: str,
    tasks: Sequence[str],
    matrices: Mapping[str, np.ndarray],
    path: str | Path | None = None,
) -> Figure:
    """Draw one metric of a probe: solid lines for the baseline, dashed lines for other orders.

    Args:
        title: text above the picture.
        metric: the column.
        tasks: names of the lines.
        matrices: order -> ``(tasks, states)``, the baseline first.
        path: where to save the picture, if anywhere.
    """
    drawing, (axes,) = figure.panels(title)
    lines = [
        figure.Line(values, "" if number else task, figure.Style(f"C{index}", figure.DASHES[min(number, 1)]))
        for number, matrix in enumerate(matrices.values())
        for index, (task, values) in enumerate(zip(tasks, matrix, strict=True))
    ]
    others = [*matrices][1 : 1 + MOST_ORDERS]
    x_label = f"layers run (dashed: {'; '.join(others)})" if others else "layers run"
    figure.lines(axes, lines, x_label=x_label, y_label=metric)
    return figure.save_figure(drawing, path)
