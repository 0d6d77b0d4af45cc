"""The views of a linearity scan: a profile of every element over layers, and a heatmap of the spans."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fastprobe.results.views import Line, Profiles, Style, View, square_heatmap

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


def scan_views(
    metric: str, profiles: Mapping[str, np.ndarray], errors: Mapping[str, np.ndarray], spans: np.ndarray | None
) -> list[View]:
    """Return the views of one metric of a scan.

    Args:
        metric: the column.
        profiles: element -> ``(layers,)``; nothing if only spans were scanned.
        errors: element -> standard errors of the profile; empty for a column without.
        spans: ``(layers, layers)`` from the input of layer i to the output of layer j; ``None`` if there are none.
    """
    views: list[View] = []
    label = LABELS.get(metric, metric)
    if profiles:
        lines = [Line(values, name, ELEMENT_STYLES[name], errors=errors.get(name)) for name, values in profiles.items()]
        least = min(0.0, float(np.nanmin([*profiles.values()])))
        views.append(Profiles(lines, "layer", label, bottom=least - 0.01 if metric == "nonlinearity" else None))
    if spans is not None:
        x_label, y_label = "to the output of layer", "from the input of layer"
        views.append(square_heatmap(spans, x_label=x_label, y_label=y_label, label=label))
    return views
