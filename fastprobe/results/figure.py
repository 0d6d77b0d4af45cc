"""Heatmaps, lines and dots with labels, drawn from plain arrays and text.

Figures are made without pyplot, so drawing opens no window and changes no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from fastprobe.errors import InputError
from fastprobe.runtime.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that readers with colour vision deficiency can tell apart (Okabe and Ito, 2008).
BLUE, SKY, VERMILION = "#0072B2", "#56B4E9", "#D55E00"

DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""Line styles for lines of one colour."""

MOST_NAMES = 40
"""Names that fit on the vertical axis."""

MOST_NUMBERS = 16
"""Layers of a square heatmap up to which each cell shows its number."""


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
        y: the values.
        label: text of the legend; an empty one stays out of it.
        style: of the line.
        x: where the values are; at 0, 1, 2, ... by default.
    """

    y: ArrayLike
    label: str = ""
    style: Style = Style()
    x: ArrayLike | None = None


@dataclass(frozen=True)
class ReferenceLine:
    """A value to compare others with, drawn as a dashed line across the panel."""

    value: float
    label: str


def panels(title: str, count: int = 1, size: tuple[float, float] = (6.8, 5.4)) -> tuple[Figure, list[Axes]]:
    """Return an empty figure with ``count`` panels side by side.

    Args:
        title: text above the panels.
        count: number of panels.
        size: width and height of the figure in inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=130)
    figure.suptitle(title)
    return figure, [*np.atleast_1d(figure.subplots(1, count))]


def save_figure(figure: Figure, path: str | Path | None) -> Figure:
    """Write a figure to ``path`` unless that is ``None``, and return it. A file is replaced whole or not at all.

    Raises:
        InputError: the ending of the name is not a picture format.
    """
    if path is not None:
        known = figure.canvas.get_supported_filetypes()
        if Path(path).suffix.lstrip(".") not in known:
            raise InputError(f"{path}: name a picture by its format, one of {', '.join(sorted(known))}")
        with replacing(path) as temporary:
            figure.savefig(temporary)
    return figure


def heatmap(axes: Axes, matrix: np.ndarray, *, x_label: str, y_label: str, label: str) -> None:
    """Draw a square matrix whose rows and columns are layers.

    With at most :data:`MOST_NUMBERS` layers, each cell shows its number.

    Args:
        axes: the panel.
        matrix: ``(layers, layers)``; ``nan`` stays empty.
        x_label: text of the horizontal axis, the columns of the matrix.
        y_label: text of the vertical axis, the rows.
        label: text of the colour bar.
    """
    image = axes.imshow(matrix, cmap="viridis", origin="upper")
    depth = len(matrix)
    axes.set_xticks(range(depth), [str(layer) for layer in range(depth)])
    axes.set_yticks(range(depth), [str(layer) for layer in range(depth)])
    if depth <= MOST_NUMBERS:
        middle = (np.nanmin(matrix) + np.nanmax(matrix)) / 2
        for i, j in zip(*np.nonzero(~np.isnan(matrix)), strict=True):
            colour = "white" if matrix[i, j] < middle else "black"
            axes.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.figure.colorbar(image, ax=axes, label=label, shrink=0.85)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)


def named_rows(axes: Axes, matrix: np.ndarray, names: Sequence[str], *, x_label: str, label: str) -> None:
    """Draw a matrix as a heatmap with a name for each row; columns count from 1.

    Args:
        axes: the panel.
        matrix: ``(rows, columns)``; ``nan`` stays empty.
        names: one a row, from the top.
        x_label: text of the horizontal axis.
        label: text of the colour bar.
    """
    rows, columns = matrix.shape
    image = axes.imshow(matrix, cmap="viridis", aspect="auto", extent=(0.5, columns + 0.5, rows - 0.5, -0.5))
    axes.set_yticks(range(rows), names, fontsize=8)
    axes.set_xlabel(x_label)
    _whole_numbers(axes)
    axes.figure.colorbar(image, ax=axes, label=label)


def lines(
    axes: Axes,
    drawn: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    names: Sequence[str] | None = None,
    reference: ReferenceLine | None = None,
    bottom: float | None = None,
    marker_size: float = 4.0,
    legend_beside: bool = True,
) -> None:
    """Draw lines over numbers or names.

    Args:
        axes: the panel.
        drawn: the lines.
        x_label: text of the horizontal axis.
        y_label: text of the vertical axis.
        names: text at 0, 1, 2, ... of the horizontal axis instead of numbers.
        reference: a value to compare the lines with.
        bottom: least value of the vertical axis; chosen by the data by default.
        marker_size: in points.
        legend_beside: put the legend beside the panel, where it covers no line.
    """
    for line in drawn:
        x = np.arange(len(np.asarray(line.y))) if line.x is None else line.x
        axes.plot(
            x,
            line.y,
            linestyle=line.style.dash,
            color=line.style.colour,
            marker=line.style.marker,
            markersize=marker_size,
            label=line.label or None,
        )
    if reference is not None:
        axes.axhline(reference.value, linestyle="--", color=VERMILION, label=reference.label)
    if names is not None:
        axes.set_xticks(range(len(names)), names)
    elif all(line.x is None for line in drawn):
        _whole_numbers(axes)
    if bottom is not None:
        axes.set_ylim(bottom=bottom)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _grid(axes)
    if legend_beside:
        _legend_beside(axes)
    else:
        axes.legend(frameon=False)


def dots(
    axes: Axes,
    values: Sequence[float],
    errors: Sequence[float],
    *,
    x_label: str,
    names: Sequence[str],
    y_label: str = "",
    reference: ReferenceLine | None = None,
    marker_size: float = 4.0,
    font_size: float | None = None,
) -> None:
    """Draw a dot with a horizontal error bar for each value, one above the other, the first value at the bottom.

    Args:
        axes: the panel.
        values: positions of the dots on the horizontal axis.
        errors: half lengths of the error bars.
        x_label: text of the horizontal axis.
        names: one a dot; more than :data:`MOST_NAMES` are left out.
        y_label: text of the vertical axis where the names are left out.
        reference: a value to compare the dots with.
        marker_size: in points.
        font_size: of the names, in points.
    """
    axes.errorbar(values, range(len(values)), xerr=errors, fmt="o", color=BLUE, markersize=marker_size)
    if len(names) <= MOST_NAMES:
        axes.set_yticks(range(len(names)), names, fontsize=font_size)
    else:
        axes.set_ylabel(y_label)
    axes.set_xlabel(x_label)
    _grid(axes)
    if reference is not None:
        axes.axvline(reference.value, linestyle="--", color=VERMILION, label=reference.label)
        _legend_beside(axes)


def curve(axes: Axes, x: ArrayLike, y: ArrayLike, *, x_label: str, y_label: str) -> None:
    """Draw a dot for each pair, and a line through the mean y at each x.

    Args:
        axes: the panel.
        x: ``(n,)``, with repeats.
        y: ``(n,)``.
        x_label: text of the horizontal axis.
        y_label: text of the vertical axis.
    """
    x, y = np.asarray(x), np.asarray(y)
    places = np.unique(x)
    axes.plot(x, y, "o", color=SKY, markersize=3, alpha=0.5)
    axes.plot(places, [y[x == place].mean() for place in places], "-s", color=BLUE, markersize=5)
    axes.set_xticks(places)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _grid(axes)


def _grid(axes: Axes) -> None:
    """Add a light grid and remove the frame's upper and right sides."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _legend_beside(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _whole_numbers(axes: Axes) -> None:
    """Put ticks of the horizontal axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
