"""Result of a linearity scan."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from fastprobe.models.points import ELEMENTS
from fastprobe.regression.evidence import NEEDED, cannot_be_said, is_undecided
from fastprobe.regression.moments import Moments
from fastprobe.regression.scores import current_column
from fastprobe.results.result import Result
from fastprobe.results.views import View
from fastprobe.scan.checkpoint import FILE
from fastprobe.scan.legend import COLUMNS
from fastprobe.scan.views import scan_views

HELD_OUT = ("nonlinearity", "r2_cv")
"""Columns whose standard error is ``r2_cv_se``."""


@dataclass(frozen=True, repr=False)
class LinearityScan(Result):
    """Scores of every element: one row for each element and layer, then one for each span.

    ``config`` says what was scanned and how, with the seconds of each part of the run. ``moments`` are the sums behind
    the rows; other scores follow from them. They are ``None`` in a loaded scan: see :meth:`Moments.load`.
    """

    moments: Moments | None = field(default=None, compare=False, repr=False)

    kind: ClassVar[str] = "linearity"
    metric: ClassVar[str] = "nonlinearity"
    shown = ("nonlinearity", "r2")
    columns = COLUMNS

    def matrix(self, metric: str = "nonlinearity", *, spans: bool = False) -> np.ndarray:
        """Return one column as a matrix, ``nan`` where there is no row or no number.

        Args:
            metric: the column.
            spans: of the spans instead of the elements.

        Returns:
            ``(elements, layers)``, elements in the order of :attr:`elements`; with ``spans`` ``(depth, depth)``, where
            ``[i, j]`` is the span from the input of layer i to the output of layer j.
        """
        metric = current_column(metric)
        rows = [row for row in self.rows if (row["element"] == "span") == spans]
        depth = max((row["stop"] for row in rows), default=0)
        names = list(range(depth)) if spans else self.elements
        matrix = np.full((len(names), depth), np.nan)
        for row in rows:
            if row.get(metric) is not None:
                at = row["start"] if spans else names.index(row["element"])
                matrix[at, row["stop"] - 1] = row[metric]
        return matrix

    @property
    def elements(self) -> list[str]:
        """The elements that were scored, without spans."""
        have = {row["element"] for row in self.rows}
        return [name for name in ELEMENTS if name in have]

    def views(self, metric: str) -> list[View]:
        """Return a line over layers for each element, and a heatmap of the spans if there are any."""
        self.rows_with(metric)  # raises if there are none
        metric = current_column(metric)
        spans = self.matrix(metric, spans=True) if any(row["element"] == "span" for row in self.rows) else None
        profiles = dict(zip(self.elements, self.matrix(metric), strict=True))
        errors = dict(zip(self.elements, self.matrix("r2_cv_se"), strict=True)) if metric in HELD_OUT else {}
        return scan_views(metric, profiles, errors, spans)

    @property
    def remark(self) -> str:
        """Remark on rows from too few tokens; empty if the tokens suffice for all rows."""
        undecided = [row for row in self.rows if is_undecided(row)]
        if not undecided:
            return ""
        first = undecided[0]
        return f"{len(undecided)} of {len(self.rows)} rows: {cannot_be_said(first['tokens'], first[NEEDED])}"

    def save(self, folder: str | Path, *, moments: bool = True) -> None:
        """Write ``scores.json``, ``scores.csv`` and ``moments.safetensors`` into a folder.

        Args:
            folder: where to write.
            moments: write the moments too, if the scan has them.
        """
        super().save(folder)
        if moments and self.moments is not None:
            self.moments.save(Path(folder) / FILE, self.config)
