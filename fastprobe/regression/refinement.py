"""One step of iterative refinement: a second look at the rows of a fit, and at what its map leaves of them.

Moments give r2 as a difference of sums, with an error that grows with the condition of x. The residual of every row is
no such difference: the squares of what is left are off by the square of the map's error only, and what is left of
x^T r, zero for the least-squares map, corrects that error in turn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastprobe.errors import InputError
from fastprobe.ops.products import matmul
from fastprobe.ops.rows import select_rows
from fastprobe.ops.score import ResidualSums, score
from fastprobe.regression.least_squares import Factorisation, Fit


class Refinement:
    """Sums of a second pass over the rows of one fit.

    Args:
        source: the factorisation behind the fit.
        fit: what is to be refined.
        y: name of the target block.
        backend: which implementation scores rows.
    """

    def __init__(self, source: Factorisation, fit: Fit, y: str, backend: str = "auto"):
        device = fit.coef.device
        self.source, self.fit, self.y, self.backend = source, fit, y, backend
        self.dtype = torch.float64 if source.moments.precision == "float64" else torch.float32
        self.rows = 0
        self._places = list(enumerate(source.folds)) if len(fit.fold_whitened) else []

        def zero() -> ResidualSums:
            return ResidualSums.zero(source.rank, fit.coef.shape[1], device)

        self.left = zero()
        self.fold_left = [(zero(), zero()) for _ in self._places]  # of the map without a fold: on the others, on it
        self._mean = (source.moments.origin(source.x) + source.mean).to(self.dtype)
        self._whiten = source.whiten.to(self.dtype)

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor, fold: Tensor) -> None:
        """Add rows that the moments have seen.

        Args:
            x: ``(N, d)``.
            y: ``(N, k)``.
            fold: ``(N,)`` int64, as the moments had it; rows with a negative fold are left out.
        """
        index = (fold >= 0).nonzero().flatten()
        self.rows += len(index)
        whitened = matmul(select_rows(x, index).to(self.dtype) - self._mean, self._whiten)
        # About the mean, which float32 does not hold well enough beside what varies.
        target = select_rows(y, index).to(self.dtype) - self.fit.y_mean.to(self.dtype)
        rounding = self.fit.y_mean.to(self.dtype).double() - self.fit.y_mean
        score.where_there_is(self.backend)(whitened, self.fit.whitened, -rounding, target, residual=self.left)
        for place, f in self._places:
            coef, mean = self.source.fold_map(self.fit, place)
            for held_out, left in enumerate(self.fold_left[place]):
                some = ((fold[index] == f) == bool(held_out)).nonzero().flatten()
                intercept = mean - self.fit.y_mean - rounding
                score.where_there_is(self.backend)(whitened[some], coef, intercept, target[some], residual=left)

    def result(self) -> Fit:
        """The refined fit.

        Raises:
            InputError: other rows were added than the moments have seen.
        """
        if self.rows != int(self.source.n):
            raise InputError(f"refine: {self.rows} rows were given, the fit has seen {int(self.source.n)}")
        return self.source.refined(self.fit, self.y, self.left, self.fold_left)
