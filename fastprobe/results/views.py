"""Views: the content of a picture as plain data. Figures, summaries in notebooks and pages are made from them.

Each result makes its views once (:meth:`fastprobe.results.result.Result.views`). A view knows no colours of a page and
no sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

BLUE = "#0072B2"
"""First of the colours that readers with colour vision deficiency can tell apart (Okabe and Ito, 2008)."""

COLOURS = (BLUE, "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Colours for lines that have none of their own."""

DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""Line styles for lines of one colour."""


@dataclass(frozen=True)
class Style:
    """Colour, line style and marker of a line, as Matplotlib has them."""

    colour: str = BLUE
    dash: Any = "-"
    marker: str = "o"


@dataclass(frozen=True)
class Line:
    """Points joined by a line.

    Args:
        y: the values; ``nan`` where there is none.
        label: text of the legend; an empty one stays out of it.
        style: of the line.
        x: positions of the values on the horizontal axis; 0, 1, 2, ... by default.
        errors: standard errors of the values, which pages show beside them; ``nan`` where there is none.
    """

    y: ArrayLike
    label: str = ""
    style: Style = Style()
    x: ArrayLike | None = None
    errors: ArrayLike | None = None

    @property
    def values(self) -> np.ndarray:
        """The values as numbers, ``(points,)``."""
        return np.asarray(self.y, dtype=float)

    @property
    def places(self) -> np.ndarray:
        """Positions of the values on the horizontal axis, ``(points,)``."""
        return np.arange(len(self.values)) if self.x is None else np.asarray(self.x)


@dataclass(frozen=True)
class ReferenceLine:
    """A value to compare others with, drawn as a dashed line across the picture."""

    value: float
    label: str


@dataclass(frozen=True)
class Profiles:
    """Lines over numbers or names.

    Args:
        lines: the lines.
        x_label: text of the horizontal axis.
        y_label: text of the vertical axis.
        names: text at 0, 1, 2, ... of the horizontal axis instead of numbers.
        reference: a value to compare the lines with.
        bottom: least value of the vertical axis; chosen by the data by default.
    """

    lines: Sequence[Line]
    x_label: str
    y_label: str
    names: Sequence[str] | None = None
    reference: ReferenceLine | None = None
    bottom: float | None = None


@dataclass(frozen=True)
class Heatmap:
    """A matrix of numbers, with a name for each row and column.

    Args:
        matrix: ``(rows, columns)``; ``nan`` stays empty.
        rows: one name a row, from the top.
        columns: one name a column.
        x_label: text of the horizontal axis, the columns.
        y_label: text of the vertical axis, the rows.
        label: text of the colour bar.
    """

    matrix: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    x_label: str
    y_label: str
    label: str


@dataclass(frozen=True)
class Dots:
    """A named dot with an error bar for each value, the first one on top.

    Args:
        values: positions of the dots.
        errors: half lengths of the error bars.
        names: one a dot.
        x_label: text of the axis of the values.
        y_label: text in place of the names, where they do not fit.
        reference: a value to compare the dots with.
    """

    values: Sequence[float]
    errors: Sequence[float]
    names: Sequence[str]
    x_label: str
    y_label: str = ""
    reference: ReferenceLine | None = None


@dataclass(frozen=True)
class Curve:
    """A dot for each pair of numbers, and a line through the mean y at each x.

    Args:
        x: ``(n,)``, with repeats.
        y: ``(n,)``.
        names: one a dot.
        x_label: text of the horizontal axis.
        y_label: text of the vertical axis.
    """

    x: ArrayLike
    y: ArrayLike
    names: Sequence[str]
    x_label: str
    y_label: str

    @property
    def places(self) -> np.ndarray:
        """The distinct x, ascending."""
        return np.unique(np.asarray(self.x))

    @property
    def means(self) -> np.ndarray:
        """The mean y at each of :attr:`places`."""
        x, y = np.asarray(self.x), np.asarray(self.y)
        return np.array([y[x == place].mean() for place in self.places])


View = Profiles | Heatmap | Dots | Curve


def square_heatmap(matrix: np.ndarray, *, x_label: str, y_label: str, label: str) -> Heatmap:
    """Return a heatmap whose rows and columns are layers.

    Args:
        matrix: ``(layers, layers)``; ``nan`` stays empty.
        x_label: text of the horizontal axis, the columns of the matrix.
        y_label: text of the vertical axis, the rows.
        label: text of the colour bar.
    """
    layers = [str(layer) for layer in range(len(matrix))]
    return Heatmap(matrix, layers, layers, x_label, y_label, label)


def shortened(name: str, letters: int) -> str:
    """Return a name of at most ``letters`` letters, with ``…`` in its middle if it is longer."""
    if len(name) <= letters:
        return name
    end = (letters - 1) // 3
    return f"{name[: letters - 1 - end]}…{name[len(name) - end :]}"
