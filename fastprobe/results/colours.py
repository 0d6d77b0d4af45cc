"""The colour scale of heatmaps on pages and in notebooks. It is Matplotlib's viridis at nine places."""

from __future__ import annotations

import math
from collections.abc import Iterable

SCALE = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")


def cell_colours(value: float, least: float, most: float) -> tuple[str, str]:
    """Return the colours of a cell and of text on it.

    Args:
        value: the number of the cell.
        least: the number with the darkest colour.
        most: the number with the lightest colour.
    """
    share = (value - least) / (most - least) if most > least else 0.5
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    before = min(int(place), len(SCALE) - 2)
    mixed = (
        round(low + (place - before) * (high - low))
        for low, high in zip(_channels(SCALE[before]), _channels(SCALE[before + 1]), strict=True)
    )
    return "#" + "".join(f"{channel:02x}" for channel in mixed), "#ffffff" if share < 0.6 else "#000000"


def limits(values: Iterable[float]) -> tuple[float, float]:
    """Return the smallest and the largest of the numbers that are finite; 0 and 0 if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return (min(finite), max(finite)) if finite else (0.0, 0.0)


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
