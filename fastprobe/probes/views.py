"""The view of a probe: a line a task over states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastprobe.results.views import COLOURS, DASHES, Line, Profiles, Style, View, shortened

MOST_ORDERS = 3
"""Orders that the label of the horizontal axis names."""

LETTERS = 24
"""Letters of the text of an order there."""


def probe_views(
    metric: str, tasks: Sequence[str], matrices: Mapping[str, np.ndarray], errors: Mapping[str, np.ndarray]
) -> list[View]:
    """Return the lines of one metric of a probe: solid ones for the baseline, dashed ones for other orders.

    Args:
        metric: the column.
        tasks: names of the lines.
        matrices: order -> ``(tasks, states)``, the baseline first.
        errors: standard errors, of the same shapes.
    """
    lines = [
        Line(
            values,
            "" if number else task,
            Style(COLOURS[index % len(COLOURS)], DASHES[min(number, 1)]),
            errors=errors[order][index],
        )
        for number, (order, matrix) in enumerate(matrices.items())
        for index, (task, values) in enumerate(zip(tasks, matrix, strict=True))
    ]
    others = [shortened(order, LETTERS) for order in [*matrices][1 : 1 + MOST_ORDERS]]
    x_label = f"layers run (dashed: {'; '.join(others)})" if others else "layers run"
    return [Profiles(lines, x_label, metric)]
