"""Rows of orders: columns that are ratios of sums, and columns that say what the order changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastprobe.errors import InputError
from fastprobe.orders import Order
from fastprobe.orders.changes import layers_dropped, layers_kept, swapped_layers
from fastprobe.reordering.effects import Metric, Sums
from fastprobe.results.result import BY_DEPTH

# Column -> numerator and denominator, names of sums.
_STATE = {"cosine": ("cosine", "tokens"), "relative_l2": ("error", "norm")}
_HEAD = {
    "loss": ("loss", "predicted"),
    "accuracy": ("correct", "predicted"),
    "top1_agreement": ("agree", "seen"),
    "kl": ("kl", "seen"),
}
STATE_COLUMNS = (*_STATE,)
"""Columns of every model."""

HEAD_COLUMNS = (*_HEAD, "delta_loss")
"""Columns of models with a language-model head."""

CHANGES = ("i", "j", "kept", "dropped")
"""Columns that say what an order changes: the two layers that it swaps, how many layers a permutation leaves in place,
and the layers that do not run. A column that does not apply is ``None``."""

_TAKEN = {*_STATE, *_HEAD, "delta_loss", "tokens", "order", "name", *CHANGES}


class EffectSums:
    """Sums of every order over all sequences, and the rows that follow from them. Order 0 is the baseline.

    Args:
        orders: number of orders.
        metrics: additional columns by name.

    Raises:
        InputError: the metrics are no dict of functions, or one has the name of another column.
    """

    def __init__(self, orders: int, metrics: Mapping[str, Metric]):
        if not isinstance(metrics, Mapping) or not all(map(callable, metrics.values())):
            raise InputError("metrics: must be a dict of names and functions of two states")
        if taken := metrics.keys() & _TAKEN:
            raise InputError(f"metrics: {', '.join(sorted(taken))} is a column already; choose another name")
        self.columns = _STATE | _HEAD | {name: (name, "tokens") for name in metrics}
        self._sums: list[Sums] = [{} for _ in range(orders)]

    def add(self, order: int, sums: Sums) -> None:
        """Add the sums of an order over one batch."""
        for name, values in sums.items():
            self._sums[order].setdefault(name, []).extend(values)

    def row(self, order: int) -> dict[str, Any]:
        """Return every column of an order with its standard error over sequences; ``None`` for undefined numbers.

        All columns of an order whose final states are not finite are ``None``.
        """
        row: dict[str, Any] = {}
        finite = np.isfinite(self._sums[order].get("error", [])).all()
        for column in self.columns:
            value, error = self._column(order, column) if finite else (None, None)
            row |= {column: value, f"{column}_se": error}
        row |= self._by_depth(order)
        baseline, loss = (np.array(self._sums[k].get("loss", [])) for k in (0, order))
        predicted = np.array(self._sums[0].get("predicted", []))
        row["delta_loss"], row["delta_loss_se"] = ratio(loss - baseline, predicted)
        row["tokens"] = int(sum(self._sums[order].get("tokens", [])))
        return row

    def _column(self, order: int, column: str, depth: str = "") -> tuple[float | None, float | None]:
        numerator, denominator = (np.array(self._sums[order].get(name + depth, [])) for name in self.columns[column])
        value, error = ratio(numerator, denominator)
        return root(value, error) if column == "relative_l2" else (value, error)

    def _by_depth(self, order: int) -> dict[str, list[float | None]]:
        """Return the columns of the states after 1, 2, ... steps; none if they were not requested."""
        depths = sorted(int(name.removeprefix("tokens@")) for name in self._sums[order] if name.startswith("tokens@"))
        row: dict[str, list[float | None]] = {}
        for column in _STATE if depths else ():
            values, errors = zip(*(self._column(order, column, f"@{depth}") for depth in depths), strict=True)
            row |= {f"{column}{BY_DEPTH}": [*values], f"{column}_se{BY_DEPTH}": [*errors]}
        return row


def changes(order: Order, depth: int) -> dict[str, Any]:
    """Return the columns :data:`CHANGES` of an order of a model with ``depth`` layers."""
    i, j = swapped_layers(order, depth) or (None, None)
    return {"i": i, "j": j, "kept": layers_kept(order, depth), "dropped": layers_dropped(order, depth)}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float | None, float | None]:
    """Return a ratio of sums over sequences and its standard error; ``None`` for undefined numbers.

    With n sequences, sums a_s and b_s, and r = Σ a_s / Σ b_s, the linearised standard error of survey statistics is
    sqrt(n / (n − 1) Σ (a_s − r b_s)²) / Σ b_s.

    Args:
        numerator: a, ``(n,)``.
        denominator: b, ``(n,)``. The ratio is undefined if its sum is zero.
    """
    n, total = len(denominator), denominator.sum()
    if not total or not np.isfinite(total) or not np.isfinite(numerator).all():
        return None, None
    ratio = float(numerator.sum() / total)
    if n < 2:
        return ratio, None
    return ratio, float(np.sqrt(n / (n - 1) * np.square(numerator - ratio * denominator).sum()) / total)


def root(square: float | None, error: float | None) -> tuple[float | None, float | None]:
    """Return the square root of a number, and the standard error that follows from the number's: se / (2 root)."""
    if square is None:
        return None, None
    value = square**0.5
    return value, None if error is None else error / (2 * value) if value else 0.0
