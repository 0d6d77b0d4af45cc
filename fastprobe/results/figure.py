"""Figures of views, for a screen or a paper, drawn with Matplotlib.

Figures are made without pyplot, so drawing opens no window and leaves Matplotlib's settings as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastprobe.errors import InputError
from fastprobe.results.table import spread
from fastprobe.results.views import BLUE, Curve, Dots, Heatmap, Profiles, View, shortened
from fastprobe.runtime.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SKY, VERMILION = "#56B4E9", "#D55E00"

MOST_NAMES = 40
"""Names that fit on the vertical axis."""

_PAPER: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "lines.linewidth": 1.0,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


@dataclass(frozen=True)
class Size:
    """The room of a figure, in inches, and what fits in it.

    Args:
        panel: width and height of a panel, a square heatmap's for ``square``.
        square: see ``panel``.
        stacked: put panels one above the other.
        titled: write a title. In a paper the caption says it.
        numbers: layers of a square heatmap up to which each cell shows its number.
        ticks: names on an axis of a heatmap.
        letters: letters of a name on an axis.
        marker: size of markers in points.
        settings: Matplotlib's settings while a figure is drawn.
    """

    panel: tuple[float, float] = (8.5, 4.8)
    square: tuple[float, float] = (6.8, 5.4)
    stacked: bool = False
    titled: bool = True
    numbers: int = 16
    ticks: int = 25
    letters: int = 40
    marker: float = 4.5
    settings: Mapping[Any, Any] = field(default_factory=dict)


SIZES = {
    "screen": Size(),
    "column": Size((3.35, 2.5), (3.35, 2.9), True, False, 6, 9, 20, 2.5, _PAPER),
    "page": Size((6.9, 3.0), (3.45, 2.9), False, False, 6, 13, 40, 3.0, _PAPER),
}
"""Sizes by name: for a screen, and for one column (85 mm) or the whole width (175 mm) of a page of a paper."""


def draw(
    title: str, remark: str, views: Sequence[View], path: str | Path | None = None, size: str = "screen"
) -> Figure:
    """Draw views as the panels of one figure, and save it if ``path`` is given.

    Args:
        title: text above the panels; left out where the size is for a paper.
        remark: what a reader must know, in the second line of the title, or alone.
        views: one or more.
        path: where to save the picture; its ending is the format, like ``.png``, ``.pdf`` or ``.svg``.
        size: a name of :data:`SIZES`.

    Raises:
        InputError: an unknown size, or the ending of the path is not a picture format.
    """
    import matplotlib

    from fastprobe.results.picture import Picture  # here, because it imports Matplotlib

    if size not in SIZES:
        raise InputError(f"size: must be one of {', '.join(SIZES)}, got {size!r}")
    room = SIZES[size]
    with matplotlib.rc_context(dict(room.settings)):
        widths, heights = zip(*(_extent(view, room) for view in views), strict=True)
        whole = (max(widths), sum(heights)) if room.stacked else (sum(widths), max(heights))
        figure = Picture(figsize=whole, layout="constrained", dpi=130)
        text = "\n".join(filter(None, (title if room.titled else "", remark)))
        if text:
            figure.suptitle(text, fontsize=None if room.titled else 7)
        shape = (len(views), 1) if room.stacked else (1, len(views))
        ratios = {"height_ratios": heights} if room.stacked else {"width_ratios": widths}
        for axes, view in zip(np.ravel(figure.subplots(*shape, gridspec_kw=ratios)), views, strict=True):
            axes.tick_params(labelsize=matplotlib.rcParams["xtick.labelsize"])  # later ticks do not see the settings
            DRAWERS[type(view)](axes, view, room)
    return save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path | None) -> Figure:
    """Write a figure to ``path`` unless that is ``None``, and return it. A file is replaced whole or not at all.

    Text of a PDF is TrueType, which conferences ask for, and can be searched.

    Raises:
        InputError: the ending of the name is not a picture format.
    """
    import matplotlib

    if path is not None:
        known = figure.canvas.get_supported_filetypes()
        if Path(path).suffix.lstrip(".") not in known:
            raise InputError(f"{path}: name a picture by its format, one of {', '.join(sorted(known))}")
        with replacing(path) as temporary, matplotlib.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}):
            figure.savefig(temporary)
    return figure


def _extent(view: View, room: Size) -> tuple[float, float]:
    """Return width and height of the panel of a view."""
    if isinstance(view, Profiles):
        return room.panel
    width, height = room.square
    names = len(view.names) if isinstance(view, Dots) else len(view.rows) if isinstance(view, Heatmap) else 0
    if isinstance(view, Heatmap) and view.rows == view.columns:
        return width, height
    return width, max(height, 0.8 + (0.14 if room.settings else 0.17) * min(names, MOST_NAMES))


def _draw_profiles(axes: Axes, view: Profiles, room: Size) -> None:
    for line in view.lines:
        style = line.style
        axes.plot(
            line.places,
            line.values,
            linestyle=style.dash,
            color=style.colour,
            marker=style.marker,
            markersize=room.marker,
            label=line.label or None,
        )
    if view.reference is not None:
        axes.axhline(view.reference.value, linestyle="--", color=VERMILION, label=view.reference.label)
    if view.names is not None:
        _name_ticks(axes.set_xticks, view.names, room.ticks, room.letters)
    elif all(line.x is None for line in view.lines):
        _whole_numbers(axes)
    if view.bottom is not None:
        axes.set_ylim(bottom=view.bottom)
    _finish(axes, view.x_label, view.y_label)
    _legend(axes, room)


def _draw_heatmap(axes: Axes, view: Heatmap, room: Size) -> None:
    is_square = view.rows == view.columns
    image = axes.imshow(view.matrix, cmap="viridis", origin="upper", aspect="equal" if is_square else "auto")
    _name_ticks(axes.set_xticks, view.columns, room.ticks, room.letters)
    _name_ticks(axes.set_yticks, view.rows, room.ticks if is_square else MOST_NAMES, room.letters)
    if is_square and len(view.rows) <= room.numbers:
        middle = (np.nanmin(view.matrix) + np.nanmax(view.matrix)) / 2
        for i, j in zip(*np.nonzero(~np.isnan(view.matrix)), strict=True):
            colour = "white" if view.matrix[i, j] < middle else "black"
            axes.text(
                j,
                i,
                f"{view.matrix[i, j]:.2f}",
                ha="center",
                va="center",
                color=colour,
                fontsize=6 if room.settings else 8,
            )
    bar = axes.figure.colorbar(image, ax=axes, label=view.label, shrink=0.85)
    bar.ax.tick_params(labelsize=axes.xaxis.get_tick_params()["labelsize"])
    axes.set_xlabel(view.x_label)
    axes.set_ylabel(view.y_label)


def _draw_dots(axes: Axes, view: Dots, room: Size) -> None:
    count = len(view.values)
    axes.errorbar(view.values, range(count), xerr=view.errors, fmt="o", color=BLUE, markersize=room.marker, linewidth=1)
    axes.invert_yaxis()
    if count <= MOST_NAMES:
        names = [shortened(name, room.letters) for name in view.names]
        axes.set_yticks(range(count), names, fontsize=6 if room.settings else 8)
    else:
        axes.set_yticks([])
        axes.set_ylabel(view.y_label)
    _finish(axes, view.x_label, axes.get_ylabel())
    if view.reference is not None:
        axes.axvline(view.reference.value, linestyle="--", color=VERMILION, label=view.reference.label)
        _legend(axes, room)


def _draw_curve(axes: Axes, view: Curve, room: Size) -> None:
    axes.plot(np.asarray(view.x), np.asarray(view.y), "o", color=SKY, markersize=room.marker * 0.7, alpha=0.5)
    axes.plot(view.places, view.means, "-s", color=BLUE, markersize=room.marker)
    axes.set_xticks(view.places)
    _finish(axes, view.x_label, view.y_label)


DRAWERS: dict[type, Callable[[Any, Any, Size], None]] = {
    Profiles: _draw_profiles,
    Heatmap: _draw_heatmap,
    Dots: _draw_dots,
    Curve: _draw_curve,
}
"""The function that draws a view, by the kind of the view."""


def _name_ticks(set_ticks: Callable[..., Any], names: Sequence[str], room: int, letters: int) -> None:
    """Put names on an axis, evenly spaced if not all of them fit."""
    places = spread(len(names), room)
    set_ticks(places, [shortened(names[place], letters) for place in places])


def _finish(axes: Axes, x_label: str, y_label: str) -> None:
    """Name the axes, add a light grid and remove the frame's upper and right sides."""
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(axes: Axes, room: Size) -> None:
    """Put the legend where it covers no line: beside the panel, or above it in a paper."""
    if not axes.get_legend_handles_labels()[1]:
        return
    if room.settings:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, columnspacing=1.0)
    else:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)


def _whole_numbers(axes: Axes) -> None:
    """Put ticks of the horizontal axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
