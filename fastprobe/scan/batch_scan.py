"""A scan batch by batch: for each batch, for each layer. The sums of all layers are held at one time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastprobe.data.batches import Batch, grouped
from fastprobe.data.checks import attended_mask
from fastprobe.data.shares import COUNTED, FIRST_MASK
from fastprobe.data.token_batches import TokenBatches
from fastprobe.models.digest import fingerprint
from fastprobe.models.inputs import ModelBatches
from fastprobe.regression.moments import Moments
from fastprobe.runtime.journal import WEIGHTS
from fastprobe.scan.checkpoint import Checkpoint
from fastprobe.scan.extension import remove_last
from fastprobe.scan.moment_pass import MomentPass
from fastprobe.scan.progress import BatchWork
from fastprobe.scan.rows import add_scores, solve_rows
from fastprobe.scan.schedule import batch_report
from fastprobe.scan.score_pass import ScorePass
from fastprobe.scan.setting import ScanSetting
from fastprobe.scan.shared_fits import gather_rows, shared_fits
from fastprobe.scan.stopping_rule import StoppingRule


@dataclass
class BatchScan(ScanSetting):
    """A scan batch by batch: a pass that sums moments, the solve, and a pass over a sample that scores tokens."""

    checkpoint: Checkpoint
    given: Iterable[Mapping[str, Any]]  # the batches as the user passed them
    exact: bool
    until: float | None
    config: dict[str, Any] = field(init=False, default_factory=dict)
    """Entries of the configuration of the result that are known after the run."""

    def run(self) -> tuple[list[dict[str, Any]], Moments]:
        """Return the rows of the scan, and its moments."""
        bar, scored = self.progress, self.sample.size != 0
        bar.say(batch_report(self.plan, self.model, scored, self.why, self.checkpoint))
        weights = fingerprint(self.model, self.points)
        resumable = self.plan.config | {COUNTED: None, FIRST_MASK: None, WEIGHTS: weights} | self.shares.config
        zero = Moments.zero(self.plan.moments, self.device)
        moments, batches_done = self.checkpoint.resume(resumable, zero)
        rule = None
        if self.until is not None:
            rule = StoppingRule(self.until, self.plan, self.method, self.ranks, batches_done)
        moment_pass = MomentPass(
            self.model,
            self.points,
            self.plan,
            moments,
            self.sample,
            self.clock,
            self.backend,
            self.reader.recorder,
            self.exact,
        )
        expected = getattr(self.given, "tokens", None) if rule is None else None
        work = BatchWork.of(self.plan, self.points.layers, bar, expected, self.sample.size)
        with bar, moment_pass.recording(), self.checkpoint.keeping(moment_pass, resumable):
            self._add_moments(moment_pass, batches_done, rule, work)
        moments.all_reduce_()
        self.sample.gather_(self.ranks)
        rows = self._rows(moments, work)
        if rule is not None:
            bar.say(rule.report(rows))
        bar.finish()
        self.config = {
            "tokens": moments.tokens,
            "sequences": moment_pass.sequences,
            "read": list(moment_pass.read) if self.ranks.size == 1 else [],
            WEIGHTS: weights,
            "scored_sequences": len(self.sample),
            "moment_bytes": self.plan.moments.nbytes,
        }
        return rows, moments

    def _add_moments(
        self, moment_pass: MomentPass, batches_done: int, rule: StoppingRule | None, work: BatchWork
    ) -> None:
        """Add the batches that the moments do not hold yet.

        Args:
            moment_pass: the first pass, recording.
            batches_done: number of batches that the moments of a checkpoint hold.
            rule: ends the pass early; ``None`` reads all batches.
            work: progress of the scan.
        """
        checkpoint, moments = self.checkpoint, moment_pass.moments
        if checkpoint.earlier_tokens and isinstance(self.given, TokenBatches):
            shorter = ModelBatches(self.model, self.points, self.given.up_to(checkpoint.earlier_tokens))
            batches_done = remove_last(moment_pass, shorter, batches_done)
        for share in self.shares.rounds(self._groups(batches_done), rule.ends_round if rule else None):
            if share.batches_done > batches_done:
                checkpoint.check_read(moment_pass)
            moment_pass.take(share, batches_done)
            if share.opens:
                moments.share_origins_()
            work.read(share.tokens)
            if share.batches_done == batches_done:
                moment_pass.tokens_before = checkpoint.tokens_before
            if rule is not None:
                with self.clock("look"):
                    if rule.is_met(moments, share.batches_done, moment_pass.tokens_before, moment_pass.tokens):
                        break
            with self.clock("save"):
                checkpoint.tick()
        if moment_pass.batches <= batches_done:
            checkpoint.check_read(moment_pass)

    def _groups(self, done: int) -> Iterator[list[Batch]]:
        """Yield the batches of this process in groups that run together. Batches that are done stay alone."""
        stream = self.clock.timed("read", self.shares.stream)
        if not self.shares.are_split:
            yield from ([batch] for batch in itertools.islice(stream, done))
        yield from grouped(stream, self.reader.group_tokens)

    def _rows(self, moments: Moments, work: BatchWork) -> list[dict[str, Any]]:
        """Solve the fits on the moments, score them on the sample, and return the rows of all processes."""
        fits = shared_fits(self.plan, self.ranks)
        score_pass = ScorePass(
            self.model,
            self.points,
            self.plan,
            self.clock,
            self.backend,
            self.reader.recorder,
            self.reader.group_tokens,
        )
        work.begin_solve(self.sample)
        with self.progress, self.clock("solve"):
            sees_all = self.sample.tokens == moments.tokens
            scored = score_pass if len(self.sample) else None
            rows = solve_rows(fits, moments, self.method, scored, refine=sees_all, advance=work.solved)
        if len(self.sample):
            self.progress.part("score")
            size = len(attended_mask(self.shares.head))
            with self.progress:
                add_scores(rows, fits, score_pass, score_pass.run(self.sample, size, work.scored))
        return gather_rows(self.plan, fits, rows, self.ranks)
