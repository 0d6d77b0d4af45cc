"""The report of a result: one HTML page that needs no network, with pictures that show their numbers under the pointer.

The page holds the views of every column as JSON. ``report.js`` draws them. All names and texts of a result are escaped,
or enter the page as text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastprobe.results.colours import SCALE, limits
from fastprobe.results.result import Result
from fastprobe.results.summary import tables
from fastprobe.results.views import Curve, Dots, Heatmap, Line, Profiles, ReferenceLine, View

TEMPLATE = "report.html.jinja"
SHORT = 80
"""Letters of a value of the configuration that are shown at once."""


def render(result: Result) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    headline = result.headline
    return environment.get_template(TEMPLATE).render(
        result=result,
        name=type(result).__name__,
        model=result.config.get("model", ""),
        title=result.title.partition("\n")[0],
        headline=headline,
        summary=tables(result.views(headline)) if headline else "",
        data={
            "scale": SCALE,
            "metrics": {metric: [plain(view) for view in result.views(metric)] for metric in result.metrics},
            "meanings": {metric: str(result.meaning(metric)) for metric in result.metrics},
        },
        columns={name: result.meaning(name) for name in (result.rows[0] if result.rows else {})},
        configuration={name: _text(value) for name, value in result.config.items() if name != "command"},
        command=result.config.get("command", ""),
        short=SHORT,
        script=(Path(__file__).parent / "report.js").read_text(encoding="utf-8"),
    )


def plain(view: View) -> dict[str, Any]:
    """Return a view as a document for JSON. Numbers that are not finite are ``None``."""
    match view:
        case Profiles():
            return {
                "kind": "profiles",
                "lines": [_line(line) for line in view.lines],
                "names": None if view.names is None else [*view.names],
                "x": view.x_label,
                "y": view.y_label,
                "reference": _reference(view.reference),
            }
        case Heatmap():
            least, most = limits(view.matrix.ravel())
            return {
                "kind": "heatmap",
                "matrix": [_numbers(row) for row in view.matrix],
                "rows": [*view.rows],
                "columns": [*view.columns],
                "x": view.x_label,
                "y": view.y_label,
                "label": view.label,
                "limits": [least, most],
            }
        case Dots():
            return {
                "kind": "dots",
                "values": _numbers(view.values),
                "errors": _numbers(view.errors),
                "names": [*view.names],
                "x": view.x_label,
                "reference": _reference(view.reference),
            }
        case Curve():
            return {
                "kind": "curve",
                "points": [_numbers(view.x), _numbers(view.y)],
                "means": [_numbers(view.places), _numbers(view.means)],
                "names": [*view.names],
                "x": view.x_label,
                "y": view.y_label,
            }


def _line(line: Line) -> Mapping[str, Any]:
    dashed = line.style.dash != "-"
    return {
        "label": line.label,
        "x": _numbers(line.places),
        "y": _numbers(line.values),
        "errors": _numbers(np.full(len(line.values), np.nan) if line.errors is None else line.errors),
        "colour": line.style.colour,
        "dashed": dashed,
    }


def _reference(reference: ReferenceLine | None) -> dict[str, Any] | None:
    return None if reference is None else {"value": float(reference.value), "label": reference.label}


def _numbers(values: Any) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in np.asarray(values, dtype=float)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
