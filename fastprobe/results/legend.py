"""Legends: meaning and unit of the columns of a result, for data frames and pages. docs/metrics.md has the formulas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Meaning(NamedTuple):
    """Meaning of a column.

    Args:
        text: what the numbers are.
        unit: of the numbers; empty for text and for counts.
        is_score: the column was measured, so that a picture of it makes sense.
    """

    text: str
    unit: str = ""
    is_score: bool = True

    def __str__(self) -> str:
        return f"{self.text} [{self.unit}]" if self.unit else self.text


def with_errors(columns: Mapping[str, Meaning]) -> dict[str, Meaning]:
    """Return columns, each followed by its standard error, ``<name>_se``."""
    pairs = (
        ((name, meaning), (f"{name}_se", Meaning(f"standard error of {name}", meaning.unit, False)))
        for name, meaning in columns.items()
    )
    return dict(one for pair in pairs for one in pair)


def place(text: str, unit: str = "") -> Meaning:
    """Return the meaning of a column that says which row it is, or how the row was computed."""
    return Meaning(text, unit, False)
