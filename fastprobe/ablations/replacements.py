"""Replacements of elements: functions from an element's input, and the batch it belongs to, to its new output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastprobe.data.folds import fold_of_sequences
from fastprobe.models.stack import LayerStack
from fastprobe.ops.products import matmul
from fastprobe.regression.least_squares import Factorisation, Fit


def same(x: Tensor, stack: LayerStack) -> Tensor:
    """Return the element's input."""
    return x


@dataclass(frozen=True)
class Constant:
    """The same vector (width,) for every token."""

    value: Tensor

    def __call__(self, x: Tensor, stack: LayerStack) -> Tensor:
        return self.value.to(x).expand(*x.shape[:-1], -1)


@dataclass(frozen=True)
class AffineMaps:
    """``(x - mean) W + b``, where a sequence gets the map that was fitted without its fold.

    The maps are stored about the mean of x. The intercept of a map of rows far from zero would be a difference of large
    numbers.
    """

    mean: Tensor  # (d,)
    maps: Mapping[int, tuple[Tensor, Tensor]]  # fold -> (d, k), (k,)
    folds: int  # sequence s is in fold s mod folds; 0 for one map, stored as that of fold 0

    @classmethod
    def of(cls, source: Factorisation, fit: Fit) -> AffineMaps:
        """Return the maps of a fit without each fold, or its one map if there are no folds."""
        fold_maps = source.fold_maps(fit)
        if not fold_maps:
            return cls(source.x_mean, {0: (fit.coef, fit.y_mean)}, 0)
        P = source.whitening.matrix
        maps = {fold: (P @ whitened, intercept) for fold, (whitened, intercept) in fold_maps.items()}
        return cls(source.x_mean, maps, len(source.moments.counts))

    def to(self, dtype: torch.dtype) -> AffineMaps:
        """Return the same maps in another dtype. They apply in it, and their output has the dtype of x."""
        maps = {fold: (coef.to(dtype), intercept.to(dtype)) for fold, (coef, intercept) in self.maps.items()}
        return AffineMaps(self.mean.to(dtype), maps, self.folds)

    def __call__(self, x: Tensor, stack: LayerStack) -> Tensor:
        centred = x.to(self.mean.dtype) - self.mean
        batch = len(stack.stem)
        # (copies, batch, length, d): all copies of a sequence are in one fold.
        by_sequence = centred.reshape(-1, batch, *x.shape[1:])
        fold = fold_of_sequences(stack.first, (batch,), max(self.folds, 1), x.device, stack.step)
        out = centred.new_empty(*by_sequence.shape[:-1], len(next(iter(self.maps.values()))[1]))
        for index, (coef, intercept) in self.maps.items():
            if len(mine := (fold == index).nonzero()[:, 0]):
                out[:, mine] = (
                    matmul(by_sequence[:, mine].flatten(0, 2), coef)
                    .add_(intercept)
                    .view(len(out), len(mine), *out.shape[2:])
                )
        return out.flatten(0, 1).to(x.dtype)


@dataclass(frozen=True)
class Resampled:
    """For every token, the element's output at a token drawn from other sequences.

    The number of a sequence seeds its draws, so they do not depend on batches. All elements draw the same tokens.
    """

    outputs: Tensor  # (entries, width)
    sequence: Tensor  # (entries,) number of the sequence of each
    seed: int

    def __call__(self, x: Tensor, stack: LayerStack) -> Tensor:
        batch, length = stack.stem.shape[:2]
        drawn = torch.stack([self._draws(stack.first + stack.step * row, length) for row in range(batch)])
        taken = self.outputs[drawn.to(self.outputs.device)]
        return taken.to(x).repeat(len(x) // batch, 1, 1)

    def _draws(self, sequence: int, length: int) -> Tensor:
        """Return ``(length,)`` random entries of other sequences."""
        others = (self.sequence != sequence).nonzero()[:, 0]
        return others[np.random.default_rng((self.seed, sequence)).integers(len(others), size=length)]
