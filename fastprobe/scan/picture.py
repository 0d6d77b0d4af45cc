"""The picture of a linearity scan: a profile of every element over layers, and a heatmap of the spans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastprobe.results import figure
from fastprobe.results.figure import Style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ELEMENT_STYLES = {
    "layer": Style("#000000", "-", "o"),
    "attention": Style("#0072B2", "-", "s"),
    "ffn": Style("#D55E00", "-", "^"),
    "attention_sum": Style("#0072B2", "--", "s"),
    "ffn_sum": Style("#D55E00", "--", "^"),
    "attn": Style("#56B4E9", "-", "D"),
    "attn_heads": Style("#56B4E9", "--", "D"),
    "attn_proj": Style("#999999", ":", "x"),
    "mlp": Style("#E69F00", "-", "v"),
    "mlp_act": Style("#E69F00", "--", "v"),
}
"""Styles of elements in every picture. Related elements have one hue (Okabe and Ito, 2008)."""

LABELS = {"nonlinearity": "non-linearity (1 − r2_cv)"}
"""Text of an axis where it says more than the name of the column."""


def picture(
    title: str,
    metric: str,
    profiles: Mapping[str, np.ndarray],
    spans: np.ndarray | None,
    path: str | Path | None = None,
) -> Figure:
    """Draw one metric of a scan.

    Args:
        title: text above the picture.
        metric: the column.
        profiles: element -> ``(layers,)``; nothing if only spans were scanned.
        spans: ``(layers, layers)`` from the input of layer i to the output of layer j; ``None`` if there are none.
        path: where to save the picture, if anywhere.
    """
    count = bool(profiles) + (spans is not None)
    drawing, axes = figure.panels(title, count, (8.5 if count == 1 else 14, 4.8))
    label = LABELS.get(metric, metric)
    if profiles:
        lines = [figure.Line(values, name, ELEMENT_STYLES[name]) for name, values in profiles.items()]
        least = min(0.0, float(np.nanmin([*profiles.values()])))
        bottom = least - 0.01 if metric == "nonlinearity" else None
        figure.lines(axes[0], lines, x_label="layer", y_label=label, bottom=bottom, marker_size=4.5)
    if spans is not None:
        figure.heatmap(
            axes[-1], spans, x_label="to the output of layer", y_label="from the input of layer", label=label
        )
    return figure.save_figure(drawing, path)
