"""Decide criteria from estimates and their standard errors. A difference within the noise decides nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from fastprobe.regression.evidence import cannot_be_said, tokens_for_difference, tokens_for_map
from fastprobe.replication.section import Finding, is_positive, mean


class Estimate(NamedTuple):
    """A number and its standard error; ``None`` if it has none, because there are too few sequences."""

    value: float
    error: float | None

    def minus(self, other: Estimate, weight: float = 1.0) -> Estimate:
        """Return ``self - weight other``. The errors are taken as independent, so that they are not too small."""
        value = self.value - weight * other.value
        if self.error is None or other.error is None:
            return Estimate(value, None)
        return Estimate(value, math.hypot(self.error, weight * other.error))


def value_of(estimate: Estimate) -> float:
    """Return the value of an estimate, by which estimates are sorted."""
    return estimate.value


def column_estimate(row: dict[str, Any], column: str, error: str = "") -> Estimate:
    """Return a column of a row with its standard error, in ``column_se`` unless named."""
    return Estimate(row[column], row.get(error or f"{column}_se"))


def mean_estimate(estimates: Iterable[Estimate]) -> Estimate:
    """Return the mean of estimates from the same tokens.

    Their errors are taken as fully correlated, so that the error of the mean is the mean of the errors.
    """
    chosen = list(estimates)
    errors = [one.error for one in chosen if one.error is not None]
    return Estimate(mean(one.value for one in chosen), mean(errors) if len(errors) == len(chosen) else None)


def propagate(function: Callable[[list[float]], float], estimates: Sequence[Estimate]) -> Estimate:
    """Return a function of estimates, with the standard error that follows from theirs.

        error² = Σ_i (f(v + se_i e_i) - f(v))²

    Args:
        function: of the list of values.
        estimates: its arguments. Their errors are taken as independent.
    """
    values = [one.value for one in estimates]
    here = function(values)
    if any(one.error is None for one in estimates):
        return Estimate(here, None)
    moved = ([*values[:i], one.value + (one.error or 0.0), *values[i + 1 :]] for i, one in enumerate(estimates))
    return Estimate(here, math.sqrt(sum((function(other) - here) ** 2 for other in moved)))


def exceeds_zero(estimate: Estimate) -> bool | None:
    """Return True if a number is above zero beyond its noise, or ``None`` within the noise or without an error."""
    return None if estimate.error is None else is_positive(estimate.value, estimate.error)


def decide(differences: Estimate | Sequence[Estimate], tokens: int, numbers: str) -> Finding:
    """Return the finding of a criterion that holds if all differences are above zero.

    It does not hold if one difference is below zero beyond its noise, and is undecided else.

    Args:
        differences: distances of numbers from their criteria.
        tokens: tokens of the result.
        numbers: the sentence with the numbers.
    """
    every = [differences] if isinstance(differences, Estimate) else list(differences)
    signs = [exceeds_zero(one) for one in every]
    if False in signs or None not in signs:
        return Finding(False not in signs, numbers)
    open_ones = (one for one, sign in zip(every, signs, strict=True) if sign is None)
    needed = max(tokens_for_difference(tokens, *one) for one in open_ones)
    return undecided(tokens, needed, numbers)


def undecided(tokens: int, needed: int, numbers: str = "") -> Finding:
    """Return a finding that nothing can be said, with the tokens that would do."""
    return Finding(None, f"{numbers} This {cannot_be_said(tokens, needed)}.".strip())


def too_few_tokens(config: dict[str, Any]) -> Finding | None:
    """Return an undecided finding if the maps of a result have too many columns for its tokens, else ``None``."""
    tokens = config.get("tokens", 0)
    needed = tokens_for_map(tokens, config.get("columns", 0))
    return undecided(tokens, needed) if needed else None
