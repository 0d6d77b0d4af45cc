"""The view of an ablation: a line an element and mode over the layers that are edited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastprobe.results.views import COLOURS, DASHES, Line, Profiles, Style, View
from fastprobe.scan.views import ELEMENT_STYLES

SWEEP_LABELS = {"each": "layer", "forward": "layers 0 to", "backward": "layers to the last, from"}
"""Text of the horizontal axis by sweep; it numbers the sets of layers."""


def ablation_views(
    metric: str,
    edits: Sequence[tuple[str, str]],
    matrix: np.ndarray,
    errors: np.ndarray,
    sets: Sequence[str],
    sweep: str,
) -> list[View]:
    """Return the lines of one metric of an ablation.

    Args:
        metric: the column.
        edits: element and mode of every line.
        matrix: ``(lines, sets of layers)``.
        errors: standard errors, of the same shape.
        sets: names of the sets of layers.
        sweep: ``"each"``, ``"forward"``, ``"backward"``, or ``"sets"`` for sets without a sequence.
    """
    names = [*map(str, range(len(sets)))] if sweep in SWEEP_LABELS else sets
    lines = [
        Line(values, f"{element}, {mode}", _style(element, mode, edits), errors=error)
        for (element, mode), values, error in zip(edits, matrix, errors, strict=True)
    ]
    return [Profiles(lines, SWEEP_LABELS.get(sweep, "layers"), metric, names)]


def _style(element: str, mode: str, edits: Sequence[tuple[str, str]]) -> Style:
    """Return the usual style of the element, with a dash for each mode, and with a colour for each if it is alone."""
    style = ELEMENT_STYLES[element]
    modes = [*dict.fromkeys(mode for _, mode in edits)]
    if len(modes) == 1:
        return style
    number = modes.index(mode)
    is_only_element = len({element for element, _ in edits}) == 1
    return replace(style, dash=DASHES[number], colour=COLOURS[number] if is_only_element else style.colour)
