"""The parts of a section of the page as data: its analyses, the claims of the paper and their criteria."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.pretraining import TrainedVariant
from fastprobe.regression.evidence import NOISE as NOISE
from fastprobe.results.result import Result

Results = Mapping[str, Any]
"""The results of analyses by their names."""


@dataclass(frozen=True)
class Subject:
    """A model to analyse, and the tokens it reads."""

    model: nn.Module
    batches: Iterable[Mapping[str, Any]]
    predicted: Iterable[Mapping[str, Any]]
    """The batches with labels, for an encoder with a language-model head: 15 % of the tokens are masked."""
    tokenizer: Any
    progress: bool
    description: Mapping[str, Any] = field(default_factory=dict)
    """Description of model and text, stored in the configuration of every result."""
    words: Sequence[str] = ()
    """Model and text as arguments of a command."""
    variants: Sequence[TrainedVariant] = ()
    """Trained models to compare with it."""

    def command_line(self, command: str, *options: str) -> str:
        """Return the command line of an analysis of this model."""
        return shlex.join(["fastprobe", command, *self.words, *options])

    @property
    def points(self) -> ModelPoints:
        return resolve(self.model)

    @property
    def depth(self) -> int:
        return len(self.points.layers)


@dataclass(frozen=True)
class Analysis:
    """A function that computes one result, and the command line that repeats it."""

    name: str
    """Name of its folder."""
    caption: str
    """Caption of its figure."""
    command: Callable[[Subject], str]
    run: Callable[[Subject], Result]
    variant: str = ""
    """The trained variant to analyse; empty for the model itself."""
    derived: bool = False
    """True if it is computed from other results. Then ``resume`` computes it again."""


class Finding(NamedTuple):
    """The outcome of a check: ``holds`` is ``None`` if it is undecided. ``numbers`` is a sentence with the numbers."""

    holds: bool | None
    numbers: str


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and the criterion that decides if it holds for a model."""

    label: str
    """Source of the claim: a key of :data:`LABELS`."""
    text: str
    criterion: str
    """The criterion in words."""
    check: Callable[[Results], Finding]
    """The criterion as a function."""


class Table(NamedTuple):
    """The numbers of a section as a table."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


@dataclass(frozen=True)
class Section:
    """A question, the analyses that answer it, and the claims of the paper about it."""

    name: str
    title: str
    question: str
    protocol: str
    """Methods, and how they differ from the paper's."""
    analyses: Sequence[Analysis]
    claims: Sequence[Claim]
    table: Callable[[Results], Table]


LABELS = {
    "A": "the abstract of the paper",
    "N": "a reader's notes on the paper, not checked against the paper",
    "F": "a check added by fastprobe",
}
"""Sources of claims."""


def damage_column(result: Result) -> str:
    """Return the column that measures damage: the loss if there is a language-model head, else the final states."""
    return "delta_loss" if result.rows[0].get("delta_loss") is not None else "relative_l2"


def is_positive(difference: float, error: float) -> bool | None:
    """Return True if a number is above zero, or ``None`` within :data:`NOISE` standard errors of zero."""
    return None if abs(difference) <= NOISE * error else difference > 0


def mean(values: Iterable[float]) -> float:
    """Return the mean of one or more numbers."""
    numbers = list(values)
    return sum(numbers) / len(numbers)


def number(value: float) -> str:
    """Format a number for the page."""
    return f"{round(value, 3) + 0.0:.3f}"  # adding 0.0 turns -0.0 into 0.0
