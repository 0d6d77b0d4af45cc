"""Rows of one group of elements, from stored states: sums over all tokens, solve, scores of a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from fastprobe.runtime.distributed import Ranks
from fastprobe.runtime.memory import give_back_freed
from fastprobe.scan.block_rows import block_rows
from fastprobe.scan.plan import ScanPlan
from fastprobe.scan.progress import ScanProgress
from fastprobe.scan.rows import add_scores, solve_rows
from fastprobe.scan.score_pass import ScorePass
from fastprobe.scan.shared_fits import gather_rows, shared_fits
from fastprobe.scan.state_stream import OnBatch, StoredBatch
from fastprobe.scan.work import score_work, solve_work, sums_work

Pass = Callable[[OnBatch], None]
"""A run over all batches of a stream, which hands on the points of each."""


@dataclass(frozen=True)
class GroupSolver:
    """Solver of groups of elements. The sums of a group are opened, filled, solved and let go before the next.

    Several processes add up their sums. Each then solves and scores the fits of its sources.
    """

    model: nn.Module
    points: ModelPoints
    method: LeastSquares
    clock: Clock
    progress: ScanProgress
    device: torch.device
    backend: str
    refine: bool
    """The scored tokens are all tokens, so that fits with a large error bound can be refined."""
    ranks: Ranks = field(default_factory=Ranks)

    def rows(self, plan: ScanPlan, fill: Pass, score: Pass | None, forward: int = 0) -> list[dict[str, Any]]:
        """Return the rows of a plan, in every process. A collective call.

        Args:
            plan: the plan of one group.
            fill: runs the tokens of this process.
            score: runs the tokens to score, which are the same in all processes; ``None`` for none.
            forward: work of one token in these runs, for the progress bar.

        Raises:
            NumericalError: an activation is not finite; the message names the point and the batch.
        """
        moments, fits = self._filled(plan, fill, forward), shared_fits(plan, self.ranks)
        score_pass = ScorePass(self.model, self.points, plan, self.clock, self.backend)
        work = solve_work(plan)
        give_back_freed()  # the C library would hold what every step leaves beside what the next one takes
        self.progress.part("solve")
        with self.clock("solve"):
            rows = solve_rows(
                fits,
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
            add_scores(rows, fits, score_pass, score_pass.cosines())
        del score_pass
        give_back_freed()
        return gather_rows(plan, fits, rows, self.ranks)

    def _filled(self, plan: ScanPlan, fill: Pass, forward: int) -> Moments:
        """Return the sums of all tokens, about origins that the first rows of all processes decide."""
        moments, whole = Moments.zero(plan.moments, self.device), plan.moments.whole()
        work = sums_work(plan) + forward
        opening = True
        self.progress.part("sums")

        def share_origins() -> None:
            nonlocal opening
            if opening:
                moments.share_origins_()
            opening = False

        def add(batch: StoredBatch, held: Mapping[Point, Tensor]) -> None:
            if not batch.opens:
                share_origins()
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
        share_origins()  # every process once, also one without batches
        return moments.all_reduce_()

    def _score(self, plan: ScanPlan, score_pass: ScorePass, score: Pass, forward: int) -> None:
        """Score tokens with the fitted maps."""
        work = score_work(plan) + forward
        self.progress.part("score")

        def add(batch: StoredBatch, held: Mapping[Point, Tensor]) -> None:
            score_pass.add(held, batch.fold, batch.tokens)
            self.progress.ran(batch.tokens * work)

        score(add)
