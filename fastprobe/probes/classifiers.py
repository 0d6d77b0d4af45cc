"""Least-squares classifiers of every state: their scores from sums, and their accuracy from tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastprobe.ops.products import matmul
from fastprobe.probes.sums import ProbeSums, block
from fastprobe.regression.least_squares import Factorisation, Fit, LeastSquares
from fastprobe.regression.scores import r2_cv, r2_cv_se, r2_score
from fastprobe.runtime.distributed import Ranks
from fastprobe.runtime.progress import PassProgress


class StateClassifiers:
    """Classifiers of one state for some tasks, fitted on all folds and without each fold.

    They work in the whitened coordinates of the state, which all of them share.
    """

    def __init__(self, source: Factorisation, fits: Mapping[str, Fit], dtype: torch.dtype):
        self.tasks = list(fits)
        self.sizes = [len(fit.y_mean) for fit in fits.values()]
        self.mean = source.x_mean.to(dtype)
        self.whiten = source.whitening.matrix.to(dtype)
        self.whole = _side_by_side([(fit.whitened_coef, fit.y_mean) for fit in fits.values()], dtype)
        fold_maps = [source.fold_maps(fit) for fit in fits.values()]
        self.without = {fold: _side_by_side([maps[fold] for maps in fold_maps], dtype) for fold in fold_maps[0]}
        self.hits: dict[tuple[str, str], int] = {}
        self.counts: dict[tuple[str, str], int] = {}

    def count(self, rows: Tensor, classes: Mapping[str, Tensor], fold: Tensor) -> None:
        """Count the tokens whose class has the largest prediction; arguments as for :meth:`ProbeSums.add`."""
        z = matmul(rows.to(self.mean.dtype) - self.mean, self.whiten)
        self._count("accuracy", self.whole, z, classes, (fold >= 0).nonzero()[:, 0])
        for index, maps in self.without.items():
            self._count("accuracy_cv", maps, z, classes, (fold == index).nonzero()[:, 0])

    def _count(
        self, column: str, maps: tuple[Tensor, Tensor], z: Tensor, classes: Mapping[str, Tensor], rows: Tensor
    ) -> None:
        if not len(rows):
            return
        predicted = matmul(z[rows], maps[0]) + maps[1]
        for task, scores in zip(self.tasks, predicted.split(self.sizes, 1), strict=True):
            label, key = classes[task][rows], (task, column)
            self.hits[key] = self.hits.get(key, 0) + int((scores.argmax(1) == label).sum())
            self.counts[key] = self.counts.get(key, 0) + int((label >= 0).sum())

    def accuracy(self, task: str, column: str) -> float | None:
        """Return the share of labelled tokens that are classified correctly; ``None`` if none was counted."""
        count = self.counts.get((task, column))
        return self.hits[task, column] / count if count else None


def solve(
    sums: ProbeSums, method: LeastSquares, progress: PassProgress
) -> tuple[list[dict[str, dict[str, Any]]], list[list[StateClassifiers]]]:
    """Return the columns that follow from sums, by state and task, and the classifiers of every state.

    Several processes take a state each in turn. The columns of all states come together, the classifiers do not: those
    of a state are in the process that solved it.

    Args:
        sums: of all tokens.
        method: ridge penalty and rank threshold.
        progress: counts the states.
    """
    columns: list[dict[str, dict[str, Any]]] = []
    classifiers: list[list[StateClassifiers]] = []
    ranks = Ranks.here()
    for state, of_state in enumerate(sums.moments):
        columns.append({})
        classifiers.append([])
        progress.ran(1)
        if state % ranks.size != ranks.rank:
            continue
        for group, moments in zip(sums.groups, of_state, strict=True):
            source = Factorisation.of(moments, block(state), method)
            fits = {task: source.fit(task) for task in group}
            dtype = torch.float64 if moments.dtype == "float64" else torch.float32
            classifiers[-1].append(StateClassifiers(source, fits, dtype))
            for task, fitted in fits.items():
                counts = moments.sum(task).sum(0)
                held_out = (fitted.held_out.rss, fitted.held_out.tss)
                columns[-1][task] = {
                    "classes": int((counts > 0).sum()),
                    "r2": r2_score(fitted.rss, fitted.tss),
                    "r2_cv": r2_cv(*held_out),
                    "r2_cv_se": r2_cv_se(*held_out),
                    "majority": float(counts.max() / counts.sum()),
                    "tokens": moments.tokens,
                }
    solved = ranks.gather(columns)
    return [solved[state % ranks.size][state] for state in range(len(columns))], classifiers


def _side_by_side(maps: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.cat([coef for coef, _ in maps], 1).to(dtype), torch.cat([intercept for _, intercept in maps]).to(dtype)
