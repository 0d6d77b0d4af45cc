"""The progress bar of a scan: forward passes, solves and scores in one bar, whose end is the end of the scan."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

from torch import nn

from fastprobe.data.sample import SequenceSample
from fastprobe.runtime.progress import Bar
from fastprobe.scan.plan import ScanPlan
from fastprobe.scan.work import layer_work, score_work, solve_work, sums_work

SEQUENCE = 128
"""Tokens of a sequence of the sample, before they are counted."""

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class ScanProgress:
    """A bar over the work of all parts of a scan, with the name of the present part and the tokens read so far.

    Args:
        show: show the bar.
    """

    def __init__(self, show: bool):
        self._show = show
        self._bar: Bar | None = None
        self._done = self._total = 0.0
        self._lock = threading.Lock()

    def __enter__(self) -> ScanProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None and self._bar is not None:  # several blocks follow each other; only an error ends the bar
            self._bar.close()

    def finish(self) -> None:
        """Show the end and close the bar."""
        self._done = self._total or self._done
        self._show_done()
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._show:
            if self._bar is not None:
                self._bar.clear()
            print(text, file=sys.stderr)

    def part(self, name: str) -> None:
        """Name the part that runs. The first one shows the bar."""
        if self._bar is None:
            options = {"bar_format": FORMAT, "smoothing": 0.1, "disable": not self._show}
            self._bar = Bar(total=self._total or None, desc=name, **options)
        self._bar.set_description_str(name, refresh=False)

    def expect(self, work: float) -> None:
        """Set the work that is left."""
        self._total = self._done + work
        if self._bar is not None:
            self._bar.total = self._total or None

    def ran(self, work: float, tokens: int = 0) -> None:
        """Count work that is done. Less is counted if the bar would reach its end before the scan does.

        Args:
            work: the work.
            tokens: tokens read so far, to be shown; 0 leaves them as they are.
        """
        with self._lock:  # sources are solved side by side
            self._done += work
            if self._total:
                self._done = min(self._done, 0.999 * self._total)
            if tokens and self._bar is not None:
                self._bar.set_postfix_str(f"{tokens:,} tokens", refresh=False)
            self._show_done()

    def _show_done(self) -> None:
        if self._bar is not None:
            self._bar.update(self._done - self._bar.n)


@dataclass
class BatchWork:
    """Work of a scan batch by batch, counted in its progress bar: all tokens, then the solve, then the scores."""

    bar: ScanProgress
    per_token: int  # forward pass and sums
    per_source: dict[str, int]
    per_scored: int  # forward pass and scores of one token
    tokens: int = 0

    @classmethod
    def of(
        cls, plan: ScanPlan, layers: Iterable[nn.Module], bar: ScanProgress, tokens: int | None, sequences: int | None
    ) -> BatchWork:
        """Tell the bar the work of a scan.

        Args:
            plan: the plan of the scan.
            layers: the layers of the model.
            bar: the bar.
            tokens: number of tokens, if it is known.
            sequences: size of the sample to score; ``None`` for all tokens.
        """
        forward = layer_work(layers)
        work = cls(bar, forward + sums_work(plan), solve_work(plan), forward + score_work(plan))
        bar.part("sums")
        if tokens is not None:
            scored = tokens if sequences is None else min(tokens, SEQUENCE * sequences)
            bar.expect(tokens * work.per_token + sum(work.per_source.values()) + scored * work.per_scored)
        return work

    def read(self, tokens: int) -> None:
        """Count tokens of the first pass."""
        self.tokens += tokens
        self.bar.ran(tokens * self.per_token, tokens=self.tokens)

    def begin_solve(self, sample: SequenceSample) -> None:
        """Begin the solve. The work that is left is now known."""
        self.bar.part("solve")
        self.bar.expect(sum(self.per_source.values()) + sample.tokens * self.per_scored)

    def solved(self, source: str) -> None:
        """Count a source that is solved."""
        self.bar.ran(self.per_source[source])

    def scored(self, tokens: int) -> None:
        """Count scored tokens."""
        self.bar.ran(tokens * self.per_scored)
