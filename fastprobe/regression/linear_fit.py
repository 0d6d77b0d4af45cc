"""Streaming least-squares fit of one pair of tensors."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from fastprobe.data.folds import fold_of_sequences
from fastprobe.errors import InputError, ShapeError
from fastprobe.orders.arguments import plain_numbers
from fastprobe.regression.least_squares import Factorisation, Fit, LeastSquares, Solution
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments
from fastprobe.regression.refinement import Refinement
from fastprobe.regression.scores import COLUMNS, MARK, current_column, moment_columns
from fastprobe.runtime.cores import side_by_side

Rows = Tensor | np.ndarray
"""Rows of a user."""


class LinearFit:
    """Streaming least-squares fit of y on x, with every score that follows from moments.

    Memory does not depend on the number of rows. Sequence s is in fold ``s mod folds``. The first dimension of
    ``(sequences, tokens, width)`` rows counts sequences; each row of ``(N, width)`` rows is its own sequence.

    Args:
        x_dim: width of x.
        y_dim: width of y.
        folds: number of folds for ``r2_cv``; 0 or 1 for no cross-validation.
        cka: also sum ``y^T y``, for the column ``cka``. A fit needs ``x^T x`` and ``x^T y`` only.
        method: ridge and rank threshold; default :class:`LeastSquares`.
        device: device of the sums; must be that of the rows.
        backend: implementation of the operations.
        exact: convert rows to float64 before any product or sum. Slow; for audits.

    Raises:
        InputError: a width below 1, or a negative number of folds.

    Example:
        >>> x = torch.linspace(-1, 1, 50)[:, None] ** torch.arange(1, 4)
        >>> fit = LinearFit(3, 1).update(x, x.sum(1, keepdim=True) + 2)
        >>> round(fit.score("r2"), 6), fit.solve().rank
        (1.0, 3)
    """

    @plain_numbers
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

    def update(self, x: Rows, y: Rows, mask: Rows | None = None) -> LinearFit:
        """Add rows. Each argument is a tensor or a NumPy array.

        Args:
            x: ``(N, x_dim)`` or ``(sequences, tokens, x_dim)``, any floating dtype.
            y: ``(N, y_dim)`` or ``(sequences, tokens, y_dim)``, any floating dtype.
            mask: ``(N,)`` or ``(sequences, tokens)``, true or 1 for rows that count, false or 0 for others; default
                all.

        Returns:
            This fit.

        Raises:
            ShapeError: the shapes of x, y and mask do not match each other or this fit, or one of them is no plain
                tensor of numbers.
            InputError: the mask has other numbers than 0 and 1.
            NumericalError: a row that counts is not finite. No row was added.
        """
        rows, fold = self._blocks(x, y, mask, self.sequences)
        self.moments.update_(rows, fold, backend=self.backend, exact=self.exact)
        self.sequences += len(x)
        self._solved = None
        return self

    partial_fit = update

    def _blocks(self, x: Rows, y: Rows, mask: Rows | None, first: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return the rows of the sequences ``first``, ``first + 1``, ... as matrices, and the fold of each row."""
        x, y, mask = _tensor(x, "x"), _tensor(y, "y"), None if mask is None else _tensor(mask, "mask")
        if x.shape[:-1] != y.shape[:-1] or x.ndim not in (2, 3) or (mask is not None and mask.shape != x.shape[:-1]):
            shapes = f"{tuple(x.shape)}, {tuple(y.shape)}" + ("" if mask is None else f", {tuple(mask.shape)}")
            raise ShapeError(f"update: x, y and mask must be (..., x_dim), (..., y_dim) and (...), got {shapes}")
        fold = fold_of_sequences(first, x.shape[:-1], self.moments.plan.folds, x.device)
        if mask is not None:
            if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
                raise InputError(
                    "update: mask must be 1 for rows that count and 0 for others; weights and additive "
                    "masks, of 0 and -inf, are not supported"
                )
            fold = torch.where(mask.bool(), fold, -1)
        return {"x": x.reshape(-1, x.shape[-1]), "y": y.reshape(-1, y.shape[-1])}, fold.flatten()

    @plain_numbers
    def refine(self, rows: Iterable[tuple[Rows, ...]], *, bound: float = MARK) -> LinearFit:
        """Improve the fit by a second pass over its rows, if ``error_bound`` exceeds ``bound``.

        The pass sums the residuals of the rows. The fit takes one step of iterative refinement, and so does the fit
        without each fold. Scores and ``error_bound`` then follow from the residuals. Adding rows ends the refinement.

        Args:
            rows: the arguments of every :meth:`update`, in the same order: (x, y) or (x, y, mask).
            bound: largest ``error_bound`` to accept without a second pass; 0 always makes one.

        Returns:
            This fit.

        Raises:
            InputError: the number of rows differs from the number added.
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
        """Add the rows of another fit, in place. The other fit is unchanged.

        Raises:
            InputError: the other is no fit of the same widths and folds, or is this one.
        """
        if not isinstance(other, LinearFit) or other is self:
            got = "this fit itself, whose rows would count twice" if other is self else f"a {type(other).__name__}"
            raise InputError(f"merge_: must be another LinearFit, got {got}")
        self.moments.merge_(other.moments)
        self.sequences += other.sequences
        self._solved = None
        return self

    def all_reduce_(self) -> LinearFit:
        """Add the rows of all processes of ``torch.distributed``, in place. A single process has all rows."""
        self.moments.all_reduce_()
        self._solved = None
        return self

    def solve(self) -> Solution:
        """Return the fitted map.

        Raises:
            NumericalError: fewer than two rows were added.
        """
        source, fit = self._solve()
        return source.solution(fit)

    def scores(self) -> dict[str, object]:
        """Return every column of a linearity row that follows from moments, by name."""
        source, fit = self._solve()
        return moment_columns(source, fit, "y")

    def _solve(self) -> tuple[Factorisation, Fit]:
        if self._solved is None:
            (self._solved,) = side_by_side(self._factorised, ["x"], self.moments.counts.device)
        return self._solved

    def _factorised(self, x: str) -> tuple[Factorisation, Fit]:
        source = Factorisation.of(self.moments, x, self.method)
        return source, source.fit("y")

    def score(self, column: str = "r2_cv") -> float:
        """Return one column of :meth:`scores`.

        Raises:
            InputError: the column is unknown, or ``None`` for this fit.
        """
        column, scores = current_column(column), self.scores()
        value = scores.get(column)
        if value is None:
            known = ", ".join(name for name in COLUMNS if scores[name] is not None)
            raise InputError(f"column: must be one of {known} for this fit, got {column!r}")
        return value  # type: ignore[return-value]


def _tensor(rows: Rows, name: str) -> Tensor:
    """Return rows as a real tensor without a graph of gradients.

    Raises:
        ShapeError: they are neither a tensor nor a NumPy array of numbers.
    """
    if isinstance(rows, np.ndarray) and not isinstance(rows, np.ma.MaskedArray) and rows.dtype.char in "?bBhHiIlLqQefd":
        native = rows.dtype.newbyteorder("=")
        rows = torch.from_numpy(np.require(rows, native, ["C", "W"]))  # torch takes no other strides and byte orders
    if isinstance(rows, Tensor) and (rows.layout != torch.strided or rows.is_nested or rows.is_meta):
        kind = "meta" if rows.is_meta else "nested" if rows.is_nested else str(rows.layout).removeprefix("torch.")
        raise ShapeError(
            f"update: {name} must be a dense tensor with numbers, got one that is {kind}; convert it first"
        )
    if not isinstance(rows, Tensor) or rows.is_complex():
        kind = f"{rows.dtype} of a {type(rows).__name__}" if hasattr(rows, "dtype") else type(rows).__name__
        raise ShapeError(f"update: {name} must be a real tensor or NumPy array, got {kind}; convert it first")
    return rows.detach()
