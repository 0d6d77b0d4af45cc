"""The page: all sections and their results in one HTML file without external resources."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastprobe.replication.section import LABELS, NOISE, Section, damage_column, number
from fastprobe.results.result import Result

TEMPLATE = "page.html.jinja"
VERDICTS = {True: "holds here", False: "not seen here", None: "undecided here"}


@dataclass(frozen=True)
class Answer:
    """A section and its results. ``refusal`` is the reason if the model does not support an analysis, else empty."""

    section: Section
    results: Mapping[str, Result]
    commands: Sequence[str]
    refusal: str

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each claim of the section."""
        rows = []
        for claim in self.section.claims:
            holds, found = (None, f"Not run: {self.refusal}.") if self.refusal else claim.check(self.results)
            rows.append(
                {
                    "section": self.section.name,
                    "label": claim.label,
                    "claim": claim.text,
                    "criterion": claim.criterion,
                    "holds": holds,
                    "found": found,
                }
            )
        return rows


def render(answers: Sequence[Answer], description: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        answers: the sections in sequence.
        description: description of model, text and sizes, from the configuration of the results.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [_view(answer) for answer in answers]
    tokens = next((a.results[n].config.get("tokens") for a in answers for n in a.results), None)
    return environment.get_template(TEMPLATE).render(
        description=description, tokens=tokens, sections=sections, labels=LABELS, verdicts=VERDICTS, noise=NOISE
    )


def _view(answer: Answer) -> dict[str, Any]:
    """Return the values of a section for the template."""
    section, results = answer.section, answer.results
    view: dict[str, Any] = {"section": section, "answer": answer, "claims": answer.rows(), "figures": [], "table": None}
    if not answer.refusal:
        table = section.table(results)
        view["table"] = {"header": table.header, "rows": [[_cell(value) for value in row] for row in table.rows]}
        view["figures"] = [(figure_url(results[a.name]), a.caption) for a in section.analyses]
    return view


def figure_url(result: Result) -> str:
    """Return the figure of a result as an SVG in a ``data:`` URL."""
    import matplotlib

    stream = io.BytesIO()
    column = damage_column(result) if result.kind in ("commutativity", "ablation") else result.metric
    with matplotlib.rc_context({"svg.hashsalt": result.kind}):  # the same bytes in every run
        result.plot(None, column).savefig(stream, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()


def _cell(value: str | int | float | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return number(value) if isinstance(value, float) else str(value)
