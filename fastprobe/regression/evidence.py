"""Number of tokens that a conclusion needs, and the sentence for a reader if there are too few."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

TOKENS_PER_COLUMN = 5
"""Fewest tokens for each input column of a least-squares map. With n tokens and d columns the held-out error is
d / (n - d) too high; here that is 25 %. With five folds, each fitted on 4/5 of the tokens, it is 33 %."""

ABOVE_ONE = 0.1
"""Share of the variance. A ``nonlinearity`` higher than 1 by more than this says nothing about the element: its map
predicts worse than the mean."""

NOISE = 2
"""A difference of at most so many standard errors is undecided."""

NEEDED = "tokens_needed"
"""Column of a row: tokens that its map needs, 0 if the tokens suffice. Files of version 0.1.0 do not have it."""


def cannot_be_said(tokens: int, needed: int) -> str:
    """Return the text for a reader of a number from too few tokens."""
    return f"cannot be said with {tokens:,} tokens; at least {needed:,} would do"


def is_undecided(row: Mapping[str, Any]) -> bool:
    """Return True if the scores of a row come from too few tokens. Rows without the column are taken as they are."""
    return bool(row.get(NEEDED))


def tokens_for_map(tokens: int, columns: int, nonlinearity: float | None = None) -> int:
    """Return the number of tokens that a least-squares map needs; 0 if the tokens suffice.

    Args:
        tokens: tokens of the fit.
        columns: input columns of the map.
        nonlinearity: its held-out score, if there is one. If it is out of range, at least twice the tokens are needed.
    """
    needed = TOKENS_PER_COLUMN * columns
    if nonlinearity is not None and nonlinearity > 1 + ABOVE_ONE:
        needed = max(needed, 2 * tokens)
    return needed if tokens < needed else 0


def tokens_for_difference(tokens: int, difference: float, error: float | None) -> int:
    """Return about how many tokens a difference needs to exceed its noise. A standard error falls with 1 / √tokens.

        needed = tokens (NOISE · error / |difference|)²,  rounded up to two digits

    A difference below a tenth of its error counts as a tenth.

    Args:
        tokens: tokens behind the difference.
        difference: distance of a number from its criterion.
        error: standard error; ``None`` if there are too few sequences for one. Then twice the tokens are proposed.
    """
    if error is None or error == 0:
        return _two_digits(2 * tokens)
    ratio = NOISE * error / max(abs(difference), error / 10)
    return _two_digits(tokens * max(ratio**2, 1.1))


def _two_digits(number: float) -> int:
    """Round a positive number up to two digits."""
    unit = 10 ** max(0, math.floor(math.log10(max(number, 1))) - 1)
    return math.ceil(number / unit) * unit
