"""The two passes of a scan over the tokens: the first adds up moments, the second scores fitted maps row by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.batches import merge, select
from fastprobe.data.folds import fold_of_sequences
from fastprobe.data.sample import SequenceSample
from fastprobe.errors import InputError, NumericalError
from fastprobe.models.calling import device_of, to_device
from fastprobe.models.points import Point
from fastprobe.models.protocols import Recorder
from fastprobe.models.recorder import ModuleRecorder
from fastprobe.models.resolve import ModelPoints
from fastprobe.ops.products import matmul
from fastprobe.ops.rows import select_rows
from fastprobe.ops.score import score
from fastprobe.regression.least_squares import Factorisation, Fit
from fastprobe.regression.moments import Moments, unit_sums
from fastprobe.regression.refinement import Refinement
from fastprobe.runtime.clock import Clock
from fastprobe.runtime.interrupt import uninterrupted
from fastprobe.scan.plan import ElementFit, ScanPlan


class Rows(Mapping[str, Tensor]):
    """The blocks of a scan as ``(tokens, width)`` matrices, computed from the points held at the end of a layer."""

    def __init__(self, scan: ScanPlan, held: Mapping[Point, Tensor]):
        self._scan, self._held = scan, held

    def __getitem__(self, block: str) -> Tensor:
        if block in self._scan.units:
            rows = self[self._scan.units[block]].float()
            return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=1e-30)
        if block in self._scan.moments.parts:
            first, second = (self[part] for part in self._scan.moments.parts[block])
            # In float32 for 16-bit rows: rounding the sum would add an error that the model does not make.
            return first + second if first.dtype.itemsize >= 4 else first.float() + second.float()
        held = self._held[self._scan.points[block]]
        return held.reshape(-1, held.shape[-1])

    def __iter__(self) -> Iterator[str]:
        return iter(self._scan.points)

    def __len__(self) -> int:
        return len(self._scan.points)


@dataclass
class MomentPass:
    """The first pass: run every token through the model once and keep only sums.

    A batch that fails midway leaves a part of itself in the moments. ``complete`` is then false, and a
    :class:`~fastprobe.scan.checkpoint.Checkpoint` does not save them.
    """

    model: nn.Module
    points: ModelPoints
    scan: ScanPlan
    moments: Moments
    sample: SequenceSample
    clock: Clock
    backend: str = "auto"
    recorder: type[Recorder] = ModuleRecorder
    exact: bool = False
    sequences: int = 0
    batches: int = 0
    complete: bool = field(init=False, default=True)
    """True while the moments hold whole batches only; false while a batch is added, and after one that failed."""
    _fold: Tensor = field(init=False)
    _looking: bool = field(init=False, default=False)
    """True while rows are checked without adding them."""

    @contextmanager
    def recording(self) -> Iterator[MomentPass]:
        """Hook into the model, so that :meth:`add` can read its points."""
        with self.recorder(self.model, self.points, self.scan.until, self._at_end_of) as self._recorder:
            try:
                yield self
            finally:  # the pass and its recorder refer to each other: else only the garbage collector frees the moments
                del self._recorder

    def skip(self, batch: Mapping[str, Any]) -> int:
        """Count a batch that the moments already hold, and return its number of tokens."""
        mask, fold = self._read(batch)
        self.sample.add(batch, fold)
        self._count(len(mask), 1)
        return int(mask.sum())

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
        self._fold = self._recorder.rows_of(mask[order], fold[order]).to(device_of(self.model))
        with uninterrupted():
            self.complete = False
            with self.clock("forward"):
                self._recorder.run(batch)
            for part, folds in zip(batches, fold.split([len(part["input_ids"]) for part in batches]), strict=True):
                self.sample.add(part, folds)
            self._count(len(mask), len(batches))
            self.complete = True
        return int(mask.sum())

    def _find_failing(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """Run batches one by one without adding them, and raise the error of the first that fails."""
        self._looking = True
        try:
            for number, batch in enumerate(batches, self.batches):
                mask, fold = self._read(batch)
                self._fold = self._recorder.rows_of(mask, fold).to(device_of(self.model))
                try:
                    self._recorder.run(to_device(dict(batch), device_of(self.model)))
                except NumericalError as error:
                    raise NumericalError(f"batch {number}: {error}") from None
        finally:
            self._looking = False

    def _count(self, sequences: int, batches: int) -> None:
        self.sequences += sequences
        self.batches += batches

    def _read(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the mask ``(batch, length)`` and the fold ``(batch,)`` of a batch."""
        for key in ("input_ids", "attention_mask"):
            if not isinstance(batch.get(key), Tensor) or batch[key].ndim != 2:
                raise InputError(f"batches: batch {self.batches} has no (batch, length) tensor {key!r}")
        mask = batch["attention_mask"].bool().cpu()
        if mask.shape != batch["input_ids"].shape:
            raise InputError(f"batches: attention_mask and input_ids of batch {self.batches} differ in shape")
        fold = fold_of_sequences(self.sequences, mask.shape[:1], self.scan.moments.folds, torch.device("cpu"))
        return mask, fold

    def _at_end_of(self, layer: int, held: Mapping[Point, Tensor]) -> None:
        stage = self.scan.stages.get(layer)
        if stage is None:
            return
        rows = Rows(self.scan, held)
        if self._looking:
            unit_sums({block: rows[block] for block in stage.fresh}, self._fold >= 0, self.backend, exact=self.exact)
            return
        with self.clock("moments"):
            self.moments.update_(
                {block: rows[block] for block in stage.blocks},
                self._fold,
                stage=stage,
                backend=self.backend,
                exact=self.exact,
            )


@dataclass
class CosinePass:
    """The second pass: average the cosine of every token's y and its prediction, and sum the residuals of some fits."""

    model: nn.Module
    points: ModelPoints
    scan: ScanPlan
    clock: Clock
    backend: str = "auto"
    recorder: type[Recorder] = ModuleRecorder
    tokens: int = 0
    """A batch of fewer tokens is merged with the next; above 0 only for a recorder without padding."""
    refinements: dict[ElementFit, Refinement] = field(init=False, default_factory=dict)
    _maps: dict[str, _SourceMaps] = field(init=False, default_factory=dict)
    _totals: dict[tuple[ElementFit, str], float] = field(init=False, default_factory=dict)
    _tokens: int = field(init=False, default=0)
    _fold: Tensor = field(init=False)
    _folds: set[int] = field(init=False)

    def add_fit(self, source: Factorisation, fit: Fit, row: ElementFit, column: str, dtype: torch.dtype) -> None:
        """Register a fitted map to be scored for a column, and the maps fitted without one fold each."""
        maps = self._maps.setdefault(row.x, _SourceMaps.of(source, dtype))
        maps.add(row, column, fit.whitened_coef, fit.y_mean, dtype)
        if column == "cosine":
            for f, fold_map in source.fold_maps(fit).items():
                maps.add(row, "cosine_cv", *fold_map, dtype, fold=f)

    def refine(self, source: Factorisation, fit: Fit, row: ElementFit) -> None:
        """Register a fit whose residuals are to be summed; the sample must be all tokens that the moments hold."""
        self.refinements[row] = Refinement(source, fit, row.y, self.backend)

    def run(self, sample: SequenceSample, batch_size: int) -> dict[tuple[ElementFit, str], float]:
        """Return the mean cosine over the tokens of the sample, by row and column."""
        with self.recorder(self.model, self.points, self.scan.until, self._at_end_of) as recorder:
            for batch, fold in sample.batches(batch_size, self.tokens):
                mask = batch["attention_mask"].bool()
                self._fold = recorder.rows_of(mask, fold).to(device_of(self.model))
                self._folds = set(fold.tolist())
                self._tokens += int(mask.sum())
                with self.clock("score forward"):
                    recorder.run(to_device(batch, device_of(self.model)))
        return {key: total / self._tokens for key, total in self._totals.items()}

    def _at_end_of(self, layer: int, held: Mapping[Point, Tensor]) -> None:
        rows = Rows(self.scan, held)
        last, scoring = self.scan.points, score.on_if_implemented(self.backend)
        with self.clock("score"), torch.autocast(self._fold.device.type, enabled=False):
            here = [f for f in self.scan.fits if max(last[f.x].layer, last[f.y].layer) == layer]
            here_rows: dict[int | None, Tensor] = {f: (self._fold == f).nonzero().flatten() for f in self._folds}
            here_rows[None] = (self._fold >= 0).nonzero().flatten()
            for x in dict.fromkeys(f.x for f in here):
                maps = self._maps[x]
                z = maps.whiten_rows(rows[x])
                for fit in (f for f in here if f.x == x):
                    y = rows[fit.y]
                    if fit in self.refinements:
                        self.refinements[fit].add(rows[x], y, self._fold)
                    for (column, fold), (coef, intercept) in maps.maps[fit].items():
                        if not len(here_rows.get(fold, ())):
                            continue
                        index = here_rows[fold]
                        scored = scoring(select_rows(z, index), coef, intercept, select_rows(y, index))
                        key = (fit, column)
                        self._totals[key] = self._totals.get(key, 0.0) + float(scored.cosine().double().sum())


@dataclass
class _SourceMaps:
    """The maps from the whitened coordinates of one source, in the dtype they are scored in."""

    mean: Tensor
    whiten: Tensor
    maps: dict[ElementFit, dict[tuple[str, int | None], tuple[Tensor, Tensor]]]

    @classmethod
    def of(cls, source: Factorisation, dtype: torch.dtype) -> _SourceMaps:
        return cls(source.x_mean.to(dtype), source.whitening.matrix.to(dtype), {})

    def add(
        self, row: ElementFit, column: str, coef: Tensor, intercept: Tensor, dtype: torch.dtype, fold: int | None = None
    ) -> None:
        self.maps.setdefault(row, {})[column, fold] = (coef.to(dtype), intercept.to(dtype))

    def whiten_rows(self, rows: Tensor) -> Tensor:
        return matmul(rows.to(self.mean.dtype) - self.mean, self.whiten)
