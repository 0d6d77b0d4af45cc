"""The picture of a linearity scan: a profile of every element over layers, and a heatmap of the spans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastprobe.results import figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ElementStyle(NamedTuple):
    """Colour, line style and marker of an element in every picture."""

    colour: str
    dash: str
    marker: str


# One hue for related elements: whole layer, attention, FFN. (Okabe and Ito, 2008.)
ELEMENT_STYLES = {
    "layer": ElementStyle("#000000", "-", "o"),
    "attention": ElementStyle("#0072B2", "-", "s"),
    "ffn": ElementStyle("#D55E00", "-", "^"),
    "attention_sum": ElementStyle("#0072B2", "--", "s"),
    "ffn_sum": ElementStyle("#D55E00", "--", "^"),
    "attn": ElementStyle("#56B4E9", "-", "D"),
    "attn_heads": ElementStyle("#56B4E9", "--", "D"),
    "attn_proj": ElementStyle("#999999", ":", "x"),
    "mlp": ElementStyle("#E69F00", "-", "v"),
    "mlp_act": ElementStyle("#E69F00", "--", "v"),
}

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
        lines = [figure.Line(values, name, None, *ELEMENT_STYLES[name]) for name, values in profiles.items()]
        least = min(0.0, float(np.nanmin([*profiles.values()])))
        bottom = least - 0.01 if metric == "nonlinearity" else None
        figure.lines(axes[0], lines, x_label="layer", y_label=label, bottom=bottom, marker_size=4.5)
    if spans is not None:
        figure.heatmap(
            axes[-1], spans, x_label="to the output of layer", y_label="from the input of layer", label=label
        )
    return figure.saved(drawing, path)
