"""The first pass of a scan: run every token through the model and add up moments."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.batches import digest_of, merge, select
from fastprobe.data.checks import attended_mask, counted_mask
from fastprobe.data.folds import fold_of_sequences
from fastprobe.data.sample import SequenceSample
from fastprobe.data.shares import Share
from fastprobe.errors import NumericalError
from fastprobe.models.calling import device_of, to_device
from fastprobe.models.points import Point
from fastprobe.models.protocols import Recorder
from fastprobe.models.recorder import ModuleRecorder
from fastprobe.models.resolve import ModelPoints
from fastprobe.regression.moments import Moments, unit_sums
from fastprobe.runtime.clock import Clock
from fastprobe.runtime.interrupt import uninterrupted
from fastprobe.scan.block_rows import block_rows
from fastprobe.scan.plan import ScanPlan


@dataclass
class MomentPass:
    """The first pass: run every token through the model once and keep only sums.

    A batch that fails midway leaves a part of itself in the moments. ``complete`` is then false, and a
    :class:`~fastprobe.scan.checkpoint.Checkpoint` does not save them.
    """

    model: nn.Module
    points: ModelPoints
    plan: ScanPlan
    moments: Moments
    sample: SequenceSample
    clock: Clock
    backend: str = "auto"
    recorder: type[Recorder] = ModuleRecorder
    exact: bool = False
    sequences: int = 0
    """Number of the next sequence; after a round the number of all sequences."""
    batches: int = 0
    """Number of the next batch; after a round the number of all batches."""
    tokens: int = 0
    """Tokens of all rounds, without padding."""
    tokens_before: int = 0
    """The same before the last round."""
    step: int = 1
    """Difference between the numbers of two sequences in succession."""
    read: tuple[str, str] = field(init=False, default=("", ""))
    """Hashes of the batches of this process so far: without the last one, and of all."""
    complete: bool = field(init=False, default=True)
    """True while the moments hold whole batches only; false while a batch is added, and after one that failed."""
    _fold: Tensor = field(init=False)
    _looking: bool = field(init=False, default=False)
    """True while rows are checked without adding them."""

    @contextmanager
    def recording(self) -> Iterator[MomentPass]:
        """Hook into the model, so that :meth:`add` can read its points."""
        with self.recorder(self.model, self.points, self.plan.until, self._at_end_of) as self._recorder:
            try:
                yield self
            finally:  # the pass and its recorder refer to each other: else only the garbage collector frees the moments
                del self._recorder

    def take(self, share: Share, done: int) -> None:
        """Add the batches of a share, or count them if they are among the first ``done``, which the moments hold."""
        self.sequences, self.batches, self.step = share.first, share.number, share.step
        if share.number < done:
            for batch in share.batches:
                self.skip(batch)
        elif share.batches:
            self.add(share.batches)
        self.sequences, self.batches = share.sequences, share.batches_done
        self.tokens_before, self.tokens = self.tokens, self.tokens + share.tokens

    def skip(self, batch: Mapping[str, Any]) -> int:
        """Count a batch that the moments already hold, and return its number of tokens."""
        mask, fold = self._read(batch)
        self.sample.add(batch, fold, self.sequences, self.step)
        self._count(len(mask), [batch])
        return int(mask.sum())

    def remove(self, batch: Mapping[str, Any]) -> None:
        """Subtract the last batch that the moments hold. It must not be counted yet."""
        _, fold = self._read(batch)
        order = fold.argsort(stable=True)
        batch = select(to_device(batch, device_of(self.model)), order)
        self._fold = self._recorder.rows_of(batch, fold[order])
        with uninterrupted():
            self.complete = False
            self.moments.negate_()
            self._recorder.run(batch)
            self.moments.negate_()
            self.complete = True

    def add(self, batches: Sequence[Mapping[str, Any]]) -> int:
        """Add consecutive batches and return their number of tokens.

        Several batches run as one: they must come from :func:`~fastprobe.data.batches.grouped`, and the recorder must
        be one without padding. A first Ctrl-C waits until they are added.

        Raises:
            NumericalError: an activation is not finite; the message names the point and the batch.
        """
        try:
            return self._add(batches)
        except NumericalError as error:
            if len(batches) == 1:
                raise NumericalError(f"batch {self.batches}: {error}") from None
            self._find_failing(batches)
            last = self.batches + len(batches) - 1
            raise NumericalError(f"batches {self.batches} to {last}, only when run together: {error}") from None

    def _add(self, batches: Sequence[Mapping[str, Any]]) -> int:
        batch = merge(batches)
        mask, fold = self._read(batch)
        # Sequences of one fold are adjacent, so that the rows of a fold are a slice.
        order = fold.argsort(stable=True)
        batch = select(to_device(batch, device_of(self.model)), order)
        self._fold = self._recorder.rows_of(batch, fold[order])
        with uninterrupted():
            self.complete = False
            with self.clock("forward"):
                self._recorder.run(batch)
            first = self.sequences
            for part, folds in zip(batches, fold.split([len(attended_mask(part)) for part in batches]), strict=True):
                self.sample.add(part, folds, first, self.step)
                first += self.step * len(folds)
            self._count(len(mask), batches)
            self.complete = True
        return int(mask.sum())

    def _find_failing(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Run batches one by one without adding them, and raise the error of the first that fails."""
        self._looking = True
        try:
            for number, batch in enumerate(batches, self.batches):
                _, fold = self._read(batch)
                batch = to_device(batch, device_of(self.model))
                self._fold = self._recorder.rows_of(batch, fold)
                try:
                    self._recorder.run(batch)
                except NumericalError as error:
                    raise NumericalError(f"batch {number}: {error}") from None
        finally:
            self._looking = False

    def _count(self, sequences: int, batches: Sequence[Mapping[str, Any]]) -> None:
        self.sequences += self.step * sequences
        self.batches += len(batches)
        for batch in batches:
            self.read = (self.read[1], hashlib.blake2b(self.read[1].encode() + digest_of(batch)).hexdigest()[:32])

    def _read(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the tokens of a batch that count, ``(batch, length)``, and its folds, ``(batch,)``."""
        mask = counted_mask(batch).cpu()
        folds = self.plan.moments.folds
        fold = fold_of_sequences(self.sequences, mask.shape[:1], folds, torch.device("cpu"), self.step)
        return mask, fold

    def _at_end_of(self, layer: int, held: Mapping[Point, Tensor]) -> None:
        stage = self.plan.stages.get(layer)
        if stage is None:
            return
        # A layer that its user placed on another device gives its points there.
        rows = partial(block_rows, self.plan, {point: tensor.to(self._fold.device) for point, tensor in held.items()})
        if self._looking:
            unit_sums({block: rows(block) for block in stage.fresh}, self._fold >= 0, self.backend, exact=self.exact)
            return
        with self.clock("moments"):
            self.moments.update_(
                {block: rows(block) for block in stage.blocks},
                self._fold,
                stage=stage,
                backend=self.backend,
                exact=self.exact,
            )
