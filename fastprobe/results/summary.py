"""Summaries of results as HTML: small tables with bars and colours, for notebooks and pages.

Styles are written into every tag, because notebooks and code hosts drop style sheets. All text is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

import numpy as np

from fastprobe.results.colours import cell_colours, limits
from fastprobe.results.table import spread
from fastprobe.results.views import BLUE, Curve, Dots, Heatmap, Profiles, View, shortened

LINES = 12
"""Rows of a table; of more, the first are shown."""

CELLS = 24
"""Columns of a heatmap, and cells of a strip; of more, evenly spaced ones are shown."""

LETTERS = 32
"""Letters of a name."""

_FONT = "font-family:system-ui,sans-serif;font-size:13px;line-height:1.4"
_TABLE = "border-collapse:collapse;margin:4px 0;width:auto;font-variant-numeric:tabular-nums"
_CELL = "padding:2px 8px;text-align:right;border:0"
_NAME = "padding:2px 8px 2px 0;text-align:left;border:0;white-space:nowrap"


def summary(headline: str, remark: str, metric: str, views: Sequence[View]) -> str:
    """Return an HTML summary of a result.

    Args:
        headline: text of the first line.
        remark: what a reader must know; empty if there is nothing.
        metric: the column that the views show.
        views: of the result.
    """
    first = f"<b>{_text(headline)}</b>" + (f" · {_text(metric)}" if metric else "")
    warning = f'<div style="color:#a33b00">{_text(remark)}</div>' if remark else ""
    return f'<div style="{_FONT};overflow-x:auto">{first}{warning}{tables(views)}</div>'


def tables(views: Iterable[View]) -> str:
    """Return one HTML table for each view."""
    return "".join(_table(view) for view in views)


def _table(view: View) -> str:
    match view:
        case Profiles():
            return _profiles_table(view)
        case Heatmap():
            return _heatmap_table(view)
        case Dots():
            return _bars_table("", view.names, view.values)
        case Curve():
            return _bars_table(view.x_label, [f"{place:g}" for place in view.places], view.means)


def _profiles_table(view: Profiles) -> str:
    """Return one row a line: its mean as a bar, its extremes with their places, and a strip of colours."""
    lines = [line for line in view.lines if line.label and np.isfinite(line.values).any()]
    least, most = limits(value for line in lines for value in line.values)
    largest = max(abs(least), abs(most))
    rows = []
    for line in lines[:LINES]:
        values = line.values
        names = view.names or [f"{place:g}" for place in line.places]
        low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
        strip = "".join(
            _colour_cell(values[k], least, most, f"{view.x_label} {names[k]}: {values[k]:.4g}", "", 10)
            for k in spread(len(values), CELLS)
        )
        extremes = (f"{_number(values[k], largest)} <small>({_text(names[k])})</small>" for k in (low, high))
        cells = "".join(f'<td style="{_CELL}">{text}</td>' for text in extremes)
        rows.append(f"{_name(line.label)}{_bar(float(np.nanmean(values)), largest)}{cells}{strip}")
    strip_width = max((min(len(line.values), CELLS) for line in lines[:LINES]), default=0)
    heads = _heads("", "mean", f"least ({view.x_label})", f"most ({view.x_label})")
    heads += f'<th style="{_CELL};text-align:left" colspan="{strip_width}">{_text(view.x_label)} →</th>'
    return _rows(heads, rows, len(lines), "lines")


def _heatmap_table(view: Heatmap) -> str:
    """Return a cell with a colour for each number."""
    least, most = limits(view.matrix.ravel())
    rows_shown, columns_shown = spread(len(view.rows), CELLS), spread(len(view.columns), CELLS)
    has_numbers = len(columns_shown) <= LINES
    rows = []
    for i in rows_shown:
        cells = (
            _colour_cell(
                view.matrix[i, j],
                least,
                most,
                f"{view.y_label} {view.rows[i]}, {view.x_label} {view.columns[j]}: {view.matrix[i, j]:.4g}",
                f"{view.matrix[i, j]:.2f}" if has_numbers else "",
                28 if has_numbers else 12,
            )
            for j in columns_shown
        )
        rows.append(_name(view.rows[i]) + "".join(cells))
    heads = _heads("")
    heads += "".join(
        f'<th style="{_CELL};padding:2px;text-align:center">{_text(view.columns[j])}</th>' for j in columns_shown
    )
    body = "".join(f'<tr style="background:none">{row}</tr>' for row in rows)
    hidden = len(view.rows) > len(rows_shown) or len(view.columns) > len(columns_shown)
    more = f"<div>{len(view.rows)} × {len(view.columns)} cells; evenly spaced ones are shown</div>" if hidden else ""
    axes = f"<div>{_text(f'{view.y_label} ↓' if view.y_label else '')} {_text(view.x_label)} →</div>"
    return f'{axes}<table style="{_TABLE}"><tr style="background:none">{heads}</tr>{body}</table>{more}'


def _bars_table(header: str, names: Sequence[str], values: Iterable[float]) -> str:
    """Return a bar for each number, the first ones of many."""
    numbers = [float(value) for value in values]
    largest = max(map(abs, limits(numbers)))
    shown = zip(names[:LINES], numbers[:LINES], strict=True)
    return _rows(_heads(header, ""), [_name(name) + _bar(value, largest) for name, value in shown], len(names), "rows")


def _rows(heads: str, rows: Sequence[str], count: int, noun: str) -> str:
    """Return a table, and a line that counts the rows that it hides."""
    body = "".join(f'<tr style="background:none">{row}</tr>' for row in rows)
    more = f"<div>{count - len(rows)} more {noun}</div>" if count > len(rows) else ""
    return f'<table style="{_TABLE}"><tr style="background:none">{heads}</tr>{body}</table>{more}'


def _heads(*texts: str) -> str:
    first, *others = texts
    cells = "".join(f'<th style="{_CELL};font-weight:600">{_text(text)}</th>' for text in others)
    return f'<th style="{_NAME};font-weight:600">{_text(first)}</th>{cells}'


def _name(name: str) -> str:
    return f'<td style="{_NAME}" title="{_text(name)}">{_text(shortened(name, LETTERS))}</td>'


def _bar(value: float, largest: float) -> str:
    """Return a cell with a number and a bar as long as its share of the largest one."""
    if not math.isfinite(value):
        return f'<td style="{_CELL}"></td>'
    width = round(100 * abs(value) / largest) if largest else 0
    fill = f"linear-gradient({BLUE}55,{BLUE}55) no-repeat 0 50%/{width}% 80%"
    return f'<td style="{_CELL};min-width:90px;background:{fill}">{_number(value, largest)}</td>'


def _colour_cell(value: float, least: float, most: float, title: str, text: str, width: int) -> str:
    if not np.isfinite(value):
        return f'<td style="padding:0;border:0;min-width:{width}px"></td>'
    back, front = cell_colours(float(value), least, most)
    style = f"padding:1px;border:0;min-width:{width}px;height:16px;background:{back};color:{front};text-align:center"
    return f'<td style="{style};font-size:11px" title="{_text(title)}">{text}</td>'


def _number(value: float, largest: float) -> str:
    """Return a number with as many decimals as the largest one of its column needs for four digits."""
    if not largest or not 1e-3 <= largest < 1e5:
        return f"{value:.3g}"
    decimals = max(0, 3 - math.floor(math.log10(largest)))
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # + 0.0 removes the minus of a zero


def _text(text: str) -> str:
    return html.escape(text)
