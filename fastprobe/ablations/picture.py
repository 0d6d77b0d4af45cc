"""The picture of an ablation: a line an element and mode over the layers that are edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastprobe.results import figure
from fastprobe.scan.picture import ELEMENT_STYLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP_LABELS = {"each": "layer", "forward": "layers 0 to", "backward": "layers to the last, from"}
"""Text of the horizontal axis by sweep; it numbers the sets of layers."""


def picture(
    title: str,
    metric: str,
    edits: Sequence[tuple[str, str]],
    matrix: np.ndarray,
    sets: Sequence[str],
    sweep: str,
    path: str | Path | None = None,
) -> Figure:
    """Draw one metric of an ablation.

    Args:
        title: text above the picture.
        metric: the column.
        edits: element and mode of every line.
        matrix: ``(lines, sets of layers)``.
        sets: names of the sets of layers.
        sweep: ``"each"``, ``"forward"``, ``"backward"``, or ``"sets"`` for sets without a sequence.
        path: where to save the picture, if anywhere.
    """
    drawing, (axes,) = figure.panels(title)
    names = [*map(str, range(len(sets)))] if sweep in SWEEP_LABELS else sets
    lines = [
        figure.Line(values, f"{element}, {mode}", _style(element, mode, edits))
        for (element, mode), values in zip(edits, matrix, strict=True)
    ]
    x_label = SWEEP_LABELS.get(sweep, "layers")
    figure.lines(axes, lines, x_label=x_label, y_label=metric, names=names, marker_size=4.5)
    return figure.save_figure(drawing, path)


def _style(element: str, mode: str, edits: Sequence[tuple[str, str]]) -> figure.Style:
    """Return the usual style of the element, with a dash for each mode, and with a colour for each if it is alone."""
    style = ELEMENT_STYLES[element]
    modes = [*dict.fromkeys(mode for _, mode in edits)]
    if len(modes) == 1:
        return style
    number = modes.index(mode)
    is_only_element = len({element for element, _ in edits}) == 1
    return replace(style, dash=figure.DASHES[number], colour=f"C{number}" if is_only_element else style.colour)
