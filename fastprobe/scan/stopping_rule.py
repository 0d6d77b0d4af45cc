"""Stopping rule of a scan: read batches until the standard errors of all rows are small."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from fastprobe.errors import InputError
from fastprobe.regression.evidence import NEEDED, TOKENS_PER_COLUMN, cannot_be_said, tokens_for_map
from fastprobe.regression.least_squares import Factorisation, LeastSquares, source_groups
from fastprobe.regression.moments import Moments
from fastprobe.regression.scores import nonlinearity, r2_cv, r2_cv_se
from fastprobe.runtime.cores import side_by_side
from fastprobe.runtime.distributed import Ranks
from fastprobe.scan.plan import ScanPlan
from fastprobe.scan.shared_fits import shared_fits

GROWTH = 1.5
"""Tokens at a look over tokens at the one before. The number of looks grows with the logarithm of the tokens, and a
scan reads about half more than it needs, at most."""


def check_until(until: float | None, folds: int, schedule: str) -> None:
    """Raise if a scan cannot stop at a standard error.

    Args:
        until: the limit; ``None`` for none.
        folds: folds of the scan.
        schedule: what a user asks for.

    Raises:
        InputError: it cannot.
    """
    if until is None:
        return
    if not 0 < until < math.inf:
        raise InputError(f"until: must be above 0 and finite, got {until}")
    if 0 <= folds < 2:
        raise InputError(f"until: needs the standard errors of two or more folds, got folds={folds}; use folds=5")
    if schedule == "layer":
        raise InputError("until: looks at all layers after some batches, got schedule='layer'; use batch or auto")


class StoppingRule:
    """End of a scan at a limit of ``r2_cv_se``.

    Looks are due when the tokens have reached 5 d for the widest source, of width d, and each time they have grown by
    half. So they depend on the batches only, and a resumed scan looks at the same places. A look computes no more than
    the held-out errors, begins with the rows that were last seen above the limit, and ends at the first one above it.

    A row counts as below the limit if its map also has enough tokens (:func:`tokens_for_map`). Rows with a constant y
    have no standard error and are left out.

    Args:
        until: the limit.
        plan: plan of the scan.
        method: options of the fits.
        ranks: the processes; each looks at the rows of its sources.
        done: batches that a run to resume has done.
    """

    def __init__(self, until: float, plan: ScanPlan, method: LeastSquares, ranks: Ranks, done: int):
        self._until, self._method, self._ranks, self._done = until, method, ranks, done
        self._first = TOKENS_PER_COLUMN * max(plan.moments.widths[f.x] for f in plan.fits)
        self._errors = {(f.x, f.y): 0.0 for f in shared_fits(plan, ranks)}  # as last seen

    def ends_round(self, batches: int, before: int, tokens: int) -> bool:
        """Return True if a round must end here, so that looks do not depend on the number of processes.

        Args:
            batches: batches read by all processes.
            before: tokens read by all processes before the last group of batches, without padding.
            tokens: the same after it.
        """
        return batches == self._done or self._is_due(before, tokens)

    def is_met(self, moments: Moments, batches: int, before: int, tokens: int) -> bool:
        """Return True if a look is due and finds all rows below the limit. A collective call.

        Args:
            moments: sums of the tokens read by this process.
            batches: batches read by all processes.
            before: tokens read by all processes before the last round, without padding.
            tokens: the same after it.
        """
        if batches < self._done or not self._is_due(before, tokens):
            return False
        if sum(self._ranks.gather(moments.tokens)) < self._first:  # not every token counts
            return False
        moments.all_reduce_()
        met = all(self._ranks.gather(self._all_below(moments)))
        moments.leave_to_first_()
        return met

    def report(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Say in a line which row of a finished scan is not below the limit, or that there is none."""
        tokens = f"{rows[0]['tokens']:,}"
        varying = [row for row in rows if row["r2"] is not None]
        above = [row for row in varying if not self._is_below(row["r2_cv_se"], row[NEEDED])]
        constant = len(rows) - len(varying)
        left_out = f"; {constant} of {len(rows)} rows have a constant y and no r2_cv_se" if constant else ""
        if not above:
            return f"until: every r2_cv_se is below {self._until:g} after {tokens} tokens{left_out}"
        worst = max(above, key=lambda row: math.inf if row["r2_cv_se"] is None else row["r2_cv_se"])
        place = f"layer {worst['layer']}" if worst["layer"] is not None else f"{worst['start']}-{worst['stop']}"
        if worst["r2_cv_se"] is None:
            state = "no r2_cv_se"
        else:
            state = f"{worst['r2_cv_se']:.2g}"
            if worst[NEEDED]:
                state += f", and {cannot_be_said(worst['tokens'], worst[NEEDED])}"
        return (
            f"until: {len(above)} of {len(rows)} rows are not below {self._until:g} at the end of the text, after "
            f"{tokens} tokens; {worst['element']} of {place} has {state}{left_out}"
        )

    def _all_below(self, moments: Moments) -> bool:
        """Look at the rows of this process, and return True if all are below the limit."""
        above = threading.Event()
        targets: dict[str, list[str]] = {}
        for x, y in sorted(self._errors, key=self._errors.__getitem__, reverse=True):
            targets.setdefault(x, []).append(y)

        def look(sources: list[str]) -> None:
            if above.is_set():
                return
            for source in Factorisation.together(moments, sources, self._method):
                for y in targets[source.x]:
                    if not above.is_set() and not self._look(source, y):
                        above.set()

        def worst(sources: list[str]) -> float:
            return max(self._errors[x, targets[x][0]] for x in sources)

        groups = sorted(source_groups(moments, targets), key=worst, reverse=True)
        for part in (groups[:1], groups[1:]):  # most looks end in the first one
            side_by_side(look, part, moments.counts.device)
        return not above.is_set()

    def _look(self, source: Factorisation, y: str) -> bool:
        """Note the standard error of one row, and return True if it is below the limit or y is constant."""
        held_out = source.cross_validate(y)
        if held_out is None:
            self._errors[source.x, y] = 0.0
            return True
        error = r2_cv_se(held_out.rss, held_out.tss)
        score = nonlinearity(r2_cv(held_out.rss, held_out.tss))
        needed = tokens_for_map(int(source.n), source.moments.plan.widths[source.x], score)
        self._errors[source.x, y] = math.inf if error is None or needed else error
        return self._is_below(error, needed)

    def _is_due(self, before: int, tokens: int) -> bool:
        due = float(self._first)
        while due <= before:
            due *= GROWTH
        return due <= tokens

    def _is_below(self, error: float | None, needed: int) -> bool:
        return error is not None and error < self._until and not needed
