"""The streaming least-squares fit of one pair, by itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastprobe.data.folds import fold_of_sequences
from fastprobe.errors import InputError, ShapeError
from fastprobe.regression.least_squares import Factorisation, Fit, LeastSquares, Solution
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments
from fastprobe.regression.refinement import Refinement
from fastprobe.regression.scores import COLUMNS, MARK, current_column, moment_columns


class LinearFit:
    """Least squares of y on x over a stream of rows, with every score that moments give.

    Its size depends on ``x_dim`` and ``y_dim`` only. Sequence s is in fold ``s mod folds``: the leading dimension of
    ``(sequences, tokens, width)`` rows counts sequences, and each row of ``(N, width)`` rows is a sequence by itself.

    Args:
        x_dim: width of x.
        y_dim: width of y.
        folds: number of folds of ``r2_cv``; 0 or 1 for none.
        cka: keep ``y^T y`` for the column ``cka``, a third product beside the two that a fit needs.
        method: how the map is fitted.
        device: where the sums are kept; that of the rows.
        backend: which implementation adds rows.
        exact: for audits: sum and multiply in float64 whatever the rows are.

    Raises:
        InputError: a width below 1, or a negative number of folds.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None] ** torch.arange(1, 4)
        >>> fit = LinearFit(3, 1).update(x, x.sum(1, keepdim=True) + 2)
        >>> round(fit.score("r2"), 6), fit.solve().rank
        (1.0, 3)
    """

    def __init__(
        self,
        x_dim: int,
        y_dim: int,
        *,
        folds: int = 5,
        cka: bool = True,
        method: LeastSquares | None = None,
        device: torch.device | str = "cpu",
        backend: str = "auto",
        exact: bool = False,
    ):
        for name, number, least in (("x_dim", x_dim, 1), ("y_dim", y_dim, 1), ("folds", folds, 0)):
            if number < least:
                raise InputError(f"{name}: must be {least} or more, got {number}")
        plan = MomentPlan.of([("x", "y")], {"x": x_dim, "y": y_dim}, folds=folds, cka=[("x", "y")] * cka)
        self.method = method or LeastSquares()
        self.backend, self.exact = backend, exact
        self.sequences = 0
        self.moments = Moments.zero(plan, device)
        self._solved: tuple[Factorisation, Fit] | None = None

    def update(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> LinearFit:
        """Add rows; returns itself.

        Args:
            x: ``(N, x_dim)`` or ``(sequences, tokens, x_dim)``, any floating dtype.
            y: the same leading dimensions, width ``y_dim``.
            mask: the leading dimensions, true where a row counts.

        Raises:
            ShapeError: x, y and mask do not fit each other or the widths of this fit.
            NumericalError: a row that counts is not finite; nothing was added.
        """
        rows, fold = self._blocks(x, y, mask, self.sequences)
        self.moments.update_(rows, fold, backend=self.backend, exact=self.exact)
        self.sequences += len(x)
        self._solved = None
        return self

    def _blocks(self, x: Tensor, y: Tensor, mask: Tensor | None, first: int) -> tuple[dict[str, Tensor], Tensor]:
        """Matrices of rows and the fold of each, for sequences ``first``, ``first + 1``, ..."""
        if x.shape[:-1] != y.shape[:-1] or x.ndim not in (2, 3) or (mask is not None and mask.shape != x.shape[:-1]):
            shapes = f"{tuple(x.shape)}, {tuple(y.shape)}" + ("" if mask is None else f", {tuple(mask.shape)}")
            raise ShapeError(f"update: x, y and mask must be (..., x_dim), (..., y_dim) and (...), got {shapes}")
        fold = fold_of_sequences(first, x.shape[:-1], self.moments.plan.folds, x.device)
        if mask is not None:
            fold = torch.where(mask.bool(), fold, -1)
        return {"x": x.reshape(-1, x.shape[-1]), "y": y.reshape(-1, y.shape[-1])}, fold.flatten()

    partial_fit = update

    def refine(self, rows: Iterable[tuple[Tensor, ...]], *, bound: float = MARK) -> LinearFit:
        """Look at the same rows once more where ``error_bound`` exceeds ``bound``; returns itself.

        Scores are those of the residuals themselves then, the map is one step of iterative refinement better, and
        ``error_bound`` says by how much; until rows are added. The maps of the folds get a step of their own.

        Args:
            rows: the arguments of every :meth:`update`, in the same order: (x, y) or (x, y, mask).
            bound: 0 looks in any case.

        Raises:
            InputError: ``rows`` are not as many as were added.
        """
        source, fit = self._solve()
        if fit.error_bound <= bound:
            return self
        refinement = Refinement(source, fit, "y", self.backend)
        sequences = 0
        for x, y, *mask in rows:
            blocks, fold = self._blocks(x, y, mask[0] if mask else None, sequences)
            refinement.add(blocks["x"], blocks["y"], fold)
            sequences += len(x)
        self._solved = source, refinement.result()
        return self

    def merge_(self, other: LinearFit) -> LinearFit:
        """Add the rows of another fit, in place; the other is left as it is."""
        self.moments.merge_(other.moments)
        self.sequences += other.sequences
        self._solved = None
        return self

    def all_reduce_(self) -> LinearFit:
        """Make this the fit of the rows of all processes of ``torch.distributed``."""
        self.moments.all_reduce_()
        self._solved = None
        return self

    def solve(self) -> Solution:
        """The fitted map.

        Raises:
            NumericalError: fewer than two rows were seen.
        """
        source, fit = self._solve()
        return source.solution(fit)

    def scores(self) -> dict[str, object]:
        """Every column of a linearity row that needs no second pass, by name."""
        source, fit = self._solve()
        return moment_columns(source, fit, "y")

    def _solve(self) -> tuple[Factorisation, Fit]:
        if self._solved is None:
            source = Factorisation.of(self.moments, "x", self.method)
            self._solved = source, source.fit("y")
        return self._solved

    def score(self, column: str = "r2_cv") -> float:
        """One column of :meth:`scores`.

        Raises:
            InputError: there is no such column, or it does not exist for this fit.
        """
        column, scores = current_column(column), self.scores()
        value = scores.get(column)
        if value is None:
            known = ", ".join(name for name in COLUMNS if scores[name] is not None)
            raise InputError(f"score: this fit has no {column!r}; it has {known}")
        return value  # type: ignore[return-value]
