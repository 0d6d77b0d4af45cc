"""Rows of a scan, solved from its moments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fastprobe.models.points import Element
from fastprobe.regression.least_squares import Factorisation, LeastSquares, source_groups
from fastprobe.regression.moments import Moments
from fastprobe.regression.scores import MARK, moment_columns
from fastprobe.runtime.cores import side_by_side
from fastprobe.scan.plan import ElementFit
from fastprobe.scan.score_pass import ScorePass


def solve_rows(
    fits: Sequence[ElementFit],
    moments: Moments,
    method: LeastSquares,
    score_pass: ScorePass | None = None,
    *,
    refine: bool = False,
    advance: Callable[[str], object] = str,
) -> list[dict[str, Any]]:
    """Fit the linear maps of a scan, and fill in the columns of its rows that follow from moments.

    Each source is factorised once, for all its targets, and each of these is fitted once. On a CPU every core takes
    another source.

    Args:
        fits: the rows, in order.
        moments: sums of a plan that has these fits.
        method: ridge penalty and rank threshold.
        score_pass: gets the fitted maps, to score them token by token later.
        refine: the score pass will see all tokens; have it refine fits with a large error bound.
        advance: called with the name of each source when all its rows are solved.
    """
    dtype = torch.float64 if moments.precision == "float64" else torch.float32
    same = _first_of_equals(fits)

    def solve(sources: list[str]) -> dict[ElementFit, dict[str, Any]]:
        columns: dict[ElementFit, dict[str, Any]] = {}
        for source in Factorisation.together(moments, sources, method):
            for f in (f for f in dict.fromkeys(same.values()) if f.x == source.x):
                solved = source.fit(f.y)
                columns[f] = moment_columns(source, solved, f.y)
                if score_pass is not None:
                    score_pass.add_fit(source, solved, f, "cosine", dtype)
                    if refine and solved.error_bound > MARK:
                        score_pass.refine(source, solved, f)
                del solved  # before the next one is computed: its fold maps are as large as all sums of its pair
                if score_pass is not None and f.unit:
                    score_pass.add_fit(source, source.fit(f.unit), f, "cosine_objective", dtype)
            advance(source.x)
            del source
        return columns

    groups = source_groups(moments, (f.x for f in fits))
    solved = side_by_side(solve, groups, moments.counts.device)
    columns = {f: of_fit for of_group in solved for f, of_fit in of_group.items()}
    return [_place(f.element) | columns[same[f]] for f in fits]


def add_scores(
    rows: Sequence[dict[str, Any]],
    fits: Sequence[ElementFit],
    score_pass: ScorePass,
    cosines: Mapping[tuple[ElementFit, str], float],
) -> None:
    """Fill in the cosine columns of the rows of these fits, and replace scores that the score pass refined."""
    same = _first_of_equals(fits)
    for f, row in zip(fits, rows, strict=True):
        if refinement := score_pass.refinements.get(same[f]):
            row.update(moment_columns(refinement.source, refinement.result(), f.y))
        row.update({column: cosines[g, column] for (g, column) in cosines if g == same[f]})


def _first_of_equals(fits: Sequence[ElementFit]) -> dict[ElementFit, ElementFit]:
    """Return, for every row, the first row with the same blocks: its fit serves both.

    Without a LayerNorm after the sum, "attention" and "attention_sum" have the same y, for example.
    """
    first: dict[tuple[str, str, str], ElementFit] = {}
    return {f: first.setdefault((f.x, f.y, f.unit), f) for f in fits}


def _place(element: Element) -> dict[str, Any]:
    return {
        "element": element.name,
        "layer": None if element.is_span else element.start,
        "start": element.start,
        "stop": element.stop,
    }
