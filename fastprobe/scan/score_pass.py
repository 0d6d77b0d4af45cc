"""The second pass of a scan: run a sample of the tokens through the model and score fitted maps token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from fastprobe.data.checks import counted_mask
from fastprobe.data.sample import SequenceSample
from fastprobe.models.calling import device_of, to_device
from fastprobe.models.points import Point
from fastprobe.models.protocols import Recorder
from fastprobe.models.recorder import ModuleRecorder
from fastprobe.models.resolve import ModelPoints
from fastprobe.ops.products import matmul
from fastprobe.ops.rows import select_rows
from fastprobe.ops.score import score
from fastprobe.regression.least_squares import Factorisation, Fit
from fastprobe.regression.refinement import Refinement
from fastprobe.runtime.clock import Clock
from fastprobe.scan.block_rows import block_rows
from fastprobe.scan.plan import ElementFit, ScanPlan


@dataclass
class ScorePass:
    """The second pass: average the cosine of every token's y and its prediction, and sum the residuals of some fits."""

    model: nn.Module
    points: ModelPoints
    plan: ScanPlan
    clock: Clock
    backend: str = "auto"
    recorder: type[Recorder] = ModuleRecorder
    group_tokens: int = 0
    """A batch of fewer tokens is merged with the next; above 0 only for a recorder without padding."""
    refinements: dict[ElementFit, Refinement] = field(init=False, default_factory=dict)
    _sources: dict[str, _SourceMaps] = field(init=False, default_factory=dict)
    _totals: dict[tuple[ElementFit, str], float] = field(init=False, default_factory=dict)
    _token_count: int = field(init=False, default=0)
    _fold: Tensor = field(init=False)

    def add_fit(
        self, source: Factorisation, fit: Fit, element_fit: ElementFit, column: str, dtype: torch.dtype
    ) -> None:
        """Register a fitted map to be scored for a column, and the maps fitted without one fold each."""
        maps = self._sources.setdefault(element_fit.x, _SourceMaps.of(source, dtype))
        maps.add(element_fit, column, fit.whitened_coef, fit.y_mean, dtype)
        if column == "cosine":
            for fold, fold_map in source.fold_maps(fit).items():
                maps.add(element_fit, "cosine_cv", *fold_map, dtype, fold=fold)

    def refine(self, source: Factorisation, fit: Fit, element_fit: ElementFit) -> None:
        """Register a fit whose residuals are to be summed; the sample must be all tokens that the moments hold."""
        self.refinements[element_fit] = Refinement(source, fit, element_fit.y, self.backend)

    def run(
        self, sample: SequenceSample, batch_size: int, advance: Callable[[int], object] = int
    ) -> dict[tuple[ElementFit, str], float]:
        """Return the mean cosine over the tokens of the sample, by fit and column of the maps that were added.

        Args:
            sample: the sequences to run.
            batch_size: most sequences of a batch of one length.
            advance: called with the number of tokens after each batch.
        """
        if not self._sources:
            return {}
        with self.recorder(self.model, self.points, self.plan.until, self._at_end_of) as recorder:
            for batch, fold in sample.batches(batch_size, self.group_tokens):
                tokens = int(counted_mask(batch).sum())
                self._fold = recorder.rows_of(batch, fold).to(device_of(self.model))
                self._token_count += tokens
                with self.clock("score forward"):
                    recorder.run(to_device(batch, device_of(self.model)))
                advance(tokens)
        return self.cosines()

    def cosines(self) -> dict[tuple[ElementFit, str], float]:
        """Return the mean cosine over all tokens that were scored, by fit and column."""
        return {key: total / self._token_count for key, total in self._totals.items()}

    def add(self, held: Mapping[Point, Tensor], fold: Tensor, tokens: int) -> None:
        """Score the tokens of one batch for the fits of the plan whose maps were added.

        Args:
            held: the points of the plan.
            fold: ``(rows,)`` fold of each row, -1 for padding.
            tokens: rows that are not padding.
        """
        self._token_count += tokens
        self._score_fits(held, fold, [f for f in self.plan.fits if f.x in self._sources])

    def _score_fits(self, held: Mapping[Point, Tensor], fold: Tensor, fits: Sequence[ElementFit]) -> None:
        rows = partial(block_rows, self.plan, {point: tensor.to(fold.device) for point, tensor in held.items()})
        with self.clock("score"), torch.autocast(fold.device.type, enabled=False):
            valid = fold >= 0
            rows_of_fold: dict[int | None, Tensor] = {
                f: (fold == f).nonzero().flatten() for f in fold[valid].unique().tolist()
            }
            rows_of_fold[None] = valid.nonzero().flatten()
            for x in dict.fromkeys(element_fit.x for element_fit in fits):
                z = self._sources[x].whiten_rows(rows(x))
                for element_fit in (f for f in fits if f.x == x):
                    y = rows(element_fit.y)
                    if element_fit in self.refinements:
                        self.refinements[element_fit].add(rows(x), y, fold)
                    self._score(element_fit, z, y, rows_of_fold)

    def _at_end_of(self, layer: int, held: Mapping[Point, Tensor]) -> None:
        point_of = self.plan.points
        added = (f for f in self.plan.fits if f.x in self._sources)
        complete = [f for f in added if max(point_of[f.x].layer, point_of[f.y].layer) == layer]
        if complete:
            self._score_fits(held, self._fold, complete)

    def _score(self, element_fit: ElementFit, z: Tensor, y: Tensor, rows_of_fold: Mapping[int | None, Tensor]) -> None:
        """Add the cosines of the predictions of one fit to its totals.

        Args:
            element_fit: the fit.
            z: ``(tokens, r)`` whitened coordinates of x.
            y: ``(tokens, k)``.
            rows_of_fold: indices of the tokens of each fold in the batch, and of all tokens under ``None``.
        """
        scoring = score.on_if_implemented(self.backend)
        for (column, fold), (coef, intercept) in self._sources[element_fit.x].maps.get(element_fit, {}).items():
            index = rows_of_fold.get(fold)
            if index is None or not len(index):
                continue
            scored = scoring(select_rows(z, index), coef, intercept, select_rows(y, index))
            key = (element_fit, column)
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
        self,
        element_fit: ElementFit,
        column: str,
        coef: Tensor,
        intercept: Tensor,
        dtype: torch.dtype,
        fold: int | None = None,
    ) -> None:
        self.maps.setdefault(element_fit, {})[column, fold] = (coef.to(dtype), intercept.to(dtype))

    def whiten_rows(self, rows: Tensor) -> Tensor:
        return matmul(rows.to(self.mean.dtype) - self.mean, self.whiten)
