"""A scan layer by layer: for each layer, for each batch. The states of all tokens are stored between layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from fastprobe.data.batches import grouped, merge, select
from fastprobe.data.checks import attended_mask, counted_mask
from fastprobe.data.folds import fold_of_sequences
from fastprobe.data.sample import SequenceSample
from fastprobe.data.shares import Shares
from fastprobe.models.layer_reader import LayerReader
from fastprobe.models.offloaded import read_ahead
from fastprobe.models.one_by_one import layer_reader_for
from fastprobe.models.points import Element, Point
from fastprobe.models.resolve import ModelPoints
from fastprobe.regression.least_squares import LeastSquares
from fastprobe.runtime.clock import Clock
from fastprobe.runtime.distributed import Ranks
from fastprobe.scan.group_rows import GroupSolver
from fastprobe.scan.layer_checkpoint import LayerCheckpoint
from fastprobe.scan.layer_plans import LayerPlans
from fastprobe.scan.memory_needs import row_bytes, working_bytes
from fastprobe.scan.plan import ScanPlan
from fastprobe.scan.progress import ScanProgress
from fastprobe.scan.reader import Reader
from fastprobe.scan.schedule import Budget, layer_report
from fastprobe.scan.shared_fits import shared_fits
from fastprobe.scan.state_store import StateStore
from fastprobe.scan.state_stream import StateStream
from fastprobe.scan.whole_text import WholeText
from fastprobe.scan.work import layer_work, score_work, solve_work, sums_work


@dataclass
class LayerScan:
    """A scan layer by layer."""

    model: nn.Module
    points: ModelPoints
    reader: Reader
    plan: ScanPlan
    sample: SequenceSample
    method: LeastSquares
    clock: Clock
    device: torch.device
    backend: str
    budget: Budget
    why: str  # for the report
    checkpoint: LayerCheckpoint
    progress: ScanProgress
    most: int  # tokens, padding included, that all batches have at most
    ranks: Ranks
    sequences: int = field(init=False, default=0)
    tokens: int = field(init=False, default=0)
    sums: int = field(init=False, default=0)  # bytes of the largest sums held at one time

    def run(self, shares: Shares, config: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the rows of the scan.

        Args:
            shares: the batches of the user.
            config: what the rows depend on, to be compared when a run resumes.

        Raises:
            InputError: the smallest group of elements does not fit in the budget.
            OSError: states cannot be written, for example because the disk is full. Finished rows are kept.
        """
        elements, batch_shape = self.plan.options.elements, attended_mask(shares.head).shape
        with self.checkpoint.keeping(config), ExitStack() as on_exit:
            self._number = {e: n for n, e in enumerate(elements) if n not in self.checkpoint.rows}
            self._merged = self.reader.group_tokens
            plans = self._plans(batch_shape)
            self.sums = plans.sums
            layers = on_exit.enter_context(layer_reader_for(self.reader.recorder)(self.model, self.points))
            rooms = (max(0, self.budget.nbytes - plans.needs), self.budget.host)
            store = on_exit.enter_context(StateStore(self.device, *rooms, self.checkpoint.folder))
            streams = self._streams(layers, store, plans, shares, batch_shape[0])
            runs = plans.runs * (2 if self._scores_all and len(self.sample) and len(streams) == 1 else 1)
            self.progress.say(
                layer_report(self.model, plans, store.nbytes, streams, runs, self.budget, self.why, self.ranks.size)
            )
            if depth := self.checkpoint.saved_depth(plans.first):
                self.checkpoint.restore(streams, depth)
            self._expect(plans, streams)
            self._run(layers, store, plans, streams)
            return [self.checkpoint.rows[number] for number in range(len(elements))]

    @property
    def config(self) -> dict[str, Any]:
        """Entries of the configuration of the result that are known after the run."""
        return {
            "tokens": self.tokens,
            "sequences": self.sequences,
            "scored_sequences": len(self.sample),
            "moment_bytes": self.sums,
        }

    def _plans(self, batch_shape: torch.Size) -> LayerPlans:
        """Divide the elements without rows into groups that fit in the budget.

        Batches are merged to fewer tokens than batch by batch only where their rows would not fit alone.
        """

        def plan_of(some: Sequence[Element]) -> ScanPlan:
            return ScanPlan.of(self.points, self.reader.widths, replace(self.plan.options, elements=tuple(some)))

        for element in self._number:
            while self._merged and row_bytes(plan_of([element]), min(self._merged, self.most)) > self.budget.nbytes:
                self._merged //= 2
        rows = min(self._merged + batch_shape.numel(), self.most)
        needs = partial(working_bytes, rows=rows, scored=self.sample.size != 0)
        return LayerPlans.of(list(self._number), plan_of, needs, self.budget.nbytes)

    def _streams(
        self, layers: LayerReader, store: StateStore, plans: LayerPlans, shares: Shares, batch_size: int
    ) -> list[StateStream]:
        """Run the embeddings, and return the streams of states that the layers run on.

        They are the tokens of this process and, if these are others, the tokens to score, the same in all processes.
        """
        main = StateStream("main", layers, store, self.clock, kept=plans.kept)
        candidates = WholeText(self.sample.size if self.ranks.size > 1 else 0)
        self.progress.part("embeddings")
        with layers.embedding():
            read = counted = 0
            for share in shares.rounds(grouped(self.clock.timed("read", shares.stream), self._merged)):
                self.sequences, read = share.sequences, read + share.tokens
                self.progress.ran(0, tokens=read)
                if not share.batches:
                    continue
                batch, sizes = merge(share.batches), [len(attended_mask(part)) for part in share.batches]
                folds, cpu = self.plan.moments.folds, torch.device("cpu")
                fold = fold_of_sequences(share.first, (sum(sizes),), folds, cpu, share.step)
                first = share.first
                for part, of_part in zip(share.batches, fold.split(sizes), strict=True):
                    self.sample.add(part, of_part, first, share.step)
                    first += share.step * len(of_part)
                numbers = torch.arange(share.number, share.number + len(sizes))
                numbers = numbers.repeat_interleave(torch.tensor(sizes))
                order = fold.argsort(stable=True)  # sequences of one fold are adjacent: its rows are a slice
                batch, fold = select(batch, order), fold[order]
                counted += int(counted_mask(batch).sum())
                if self._number:
                    main.append(batch, fold, numbers[order], opens=share.opens)
                    candidates.add(share.number, batch, fold)
            self.tokens = sum(self.ranks.gather(counted))
            self.sample.gather_(self.ranks)
            if not self._number or not len(self.sample) or (self._scores_all and self.ranks.size == 1):
                return [main]
            scored = StateStream("sample", layers, store, self.clock, "score forward", kept=plans.kept)
            everything = candidates.gathered(self.ranks) if self._scores_all else None
            for some, of_some in everything or self.sample.batches(batch_size, self._merged):
                scored.append(some, of_some, torch.zeros_like(of_some))
        return [main, scored]

    @property
    def _scores_all(self) -> bool:
        """True if all tokens are scored."""
        return self.sample.size is None or self.sample.tokens == self.tokens

    def _expect(self, plans: LayerPlans, streams: list[StateStream]) -> None:
        """Tell the progress bar the work that is left."""
        tokens, scored = streams[0].tokens, streams[-1].tokens if len(self.sample) else 0
        work = 0
        for layer in range(streams[0].depth, plans.depth):
            forward, groups = layer_work([self.points.layers[layer]]), plans.layers.get(layer, ())
            work += max(1, len(groups)) * (tokens + scored) * forward
            work += sum(self._work(plan, tokens, scored) for plan in groups)
        work += sum(self._work(plan, tokens, scored) for groups in plans.sources.values() for plan in groups)
        self.progress.expect(work)

    def _work(self, plan: ScanPlan, tokens: int, scored: int) -> int:
        solve, mine = solve_work(plan), {f.x for f in shared_fits(plan, self.ranks)}
        return tokens * sums_work(plan) + sum(solve[x] for x in mine) + scored * score_work(plan)

    def _run(self, layers: LayerReader, store: StateStore, plans: LayerPlans, streams: list[StateStream]) -> None:
        """Compute the rows of all groups, layer by layer, then source by source."""
        main, scored = streams[0], streams[-1] if len(self.sample) else None
        refine = self.sample.tokens == self.tokens
        solver = GroupSolver(
            self.model,
            self.points,
            self.method,
            self.clock,
            self.progress,
            self.device,
            self.backend,
            refine,
            self.ranks,
        )
        with ThreadPoolExecutor(1) as thread:
            for layer in range(main.depth, plans.depth):
                forward, groups = layer_work([self.points.layers[layer]]), plans.layers.get(layer, ())
                goes_on = layer + 1 < plans.depth or layer + 1 in plans.kept
                with ExitStack() as on_exit:
                    with self.clock("weights"):
                        run = on_exit.enter_context(layers.layer(layer))
                    if layer + 1 < plans.depth:
                        thread.submit(read_ahead, self.points.layers[layer + 1])
                    for plan in groups:
                        advance = goes_on and plan is groups[-1]
                        fill = partial(main.run, run, plan.until, advance=advance and scored is not main)
                        score = None if scored is None else partial(scored.run, run, plan.until, advance=advance)
                        self._keep(plan, solver.rows(plan, fill, score, forward))
                    for stream in () if groups else streams:
                        self.progress.part("forward")
                        stream.run(run, advance=goes_on)
                        self.progress.ran(stream.tokens * forward)
                if goes_on:
                    self.checkpoint.save(streams, store)
        for start, groups in plans.sources.items():
            for plan in groups:
                depths = {start: start, **{span.stop: span.stop for span in plan.options.elements}}
                at = {depth: self.points.canonical(_point(depth)) for depth in depths}
                score = None if scored is None else partial(scored.read, at)
                self._keep(plan, solver.rows(plan, partial(main.read, at), score))

    def _keep(self, plan: ScanPlan, rows: list[dict[str, Any]]) -> None:
        """Keep the rows of a group."""
        for element, row in zip(plan.options.elements, rows, strict=True):
            self.checkpoint.add(self._number[element], row)


def _point(depth: int) -> Point:
    """Return the point that the states of a depth are."""
    return Point("resid_post", depth - 1) if depth else Point("resid_pre", 0)
