"""Rows of one group of elements, from stored states: sums over all tokens, solve, scores of a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.errors import NumericalError
from fastprobe.models.points import Point
from fastprobe.models.resolve import ModelPoints
from fastprobe.regression.least_squares import LeastSquares
from fastprobe.regression.moments import Moments
from fastprobe.runtime.clock import Clock
from fastprobe.runtime.memory import give_back_freed
from fastprobe.scan.block_rows import block_rows
from fastprobe.scan.plan import ScanPlan
from fastprobe.scan.progress import ScanProgress
from fastprobe.scan.rows import add_scores, solve_rows
from fastprobe.scan.score_pass import ScorePass
from fastprobe.scan.state_stream import OnBatch, StoredBatch
from fastprobe.scan.work import score_work, solve_work, sums_work

Pass = Callable[[OnBatch], None]
"""A run over all batches of a stream, which hands on the points of each."""


@dataclass(frozen=True)
class GroupSolver:
    """Solver of groups of elements. The sums of a group are opened, filled, solved and let go before the next."""

    model: nn.Module
    points: ModelPoints
    method: LeastSquares
    clock: Clock
    progress: ScanProgress
    device: torch.device
    backend: str
    refine: bool
    """The scored tokens are all tokens, so that fits with a large error bound can be refined."""

    def rows(self, plan: ScanPlan, fill: Pass, score: Pass | None, forward: int = 0) -> list[dict[str, Any]]:
        """Return the rows of a plan.

        Args:
            plan: the plan of one group.
            fill: runs all tokens.
            score: runs the tokens to score; ``None`` for none.
            forward: work of one token in these runs, for the progress bar.

        Raises:
            NumericalError: an activation is not finite; the message names the point and the batch.
        """
        moments = self._filled(plan, fill, forward)
        score_pass = ScorePass(self.model, self.points, plan, self.clock, self.backend)
        work = solve_work(plan)
        give_back_freed()  # the C library would hold what every step leaves beside what the next one takes
        self.progress.part("solve")
        with self.clock("solve"):
            rows = solve_rows(
                plan.fits,
                moments,
                self.method,
                None if score is None else score_pass,
                refine=self.refine,
                advance=lambda x: self.progress.ran(work[x]),
            )
        del moments  # before the scores; a refinement keeps them
        give_back_freed()
        if score is not None:
            self._score(plan, score_pass, score, forward)
            add_scores(rows, plan.fits, score_pass, score_pass.cosines())
        del score_pass
        give_back_freed()
        return rows

    def _filled(self, plan: ScanPlan, fill: Pass, forward: int) -> Moments:
        """Return the sums of all tokens."""
        moments, whole = Moments.zero(plan.moments, self.device), plan.moments.whole()
        work = sums_work(plan) + forward
        self.progress.part("sums")

        def add(batch: StoredBatch, held: Mapping[Point, Tensor]) -> None:
            rows = partial(block_rows, plan, {point: tensor.to(self.device) for point, tensor in held.items()})
            try:
                with self.clock("moments"):
                    moments.update_(
                        {block: rows(block) for block in whole.blocks},
                        batch.fold,
                        stage=whole,
                        backend=self.backend,
                        exact=plan.options.exact,
                    )
            except NumericalError as error:
                raise batch.failure(held, error) from None
            self.progress.ran(batch.tokens * work)

        fill(add)
        return moments

    def _score(self, plan: ScanPlan, score_pass: ScorePass, score: Pass, forward: int) -> None:
        """Score tokens with the fitted maps."""
        work = score_work(plan) + forward
        self.progress.part("score")

        def add(batch: StoredBatch, held: Mapping[Point, Tensor]) -> None:
            score_pass.add(held, batch.fold, batch.tokens)
            self.progress.ran(batch.tokens * work)

        score(add)
