"""What a section of the page is made of, as data: its analyses, what the paper found, and what would be that here."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.pretraining import TrainedVariant
from fastprobe.results.result import Result

Results = Mapping[str, Any]
"""The results of a section by the names of its analyses."""


@dataclass(frozen=True)
class Subject:
    """A model and the tokens that it is asked about."""

    model: nn.Module
    batches: Iterable[Mapping[str, Any]]
    predicted: Iterable[Mapping[str, Any]]
    """The same with labels where a head is to predict hidden tokens."""
    tokenizer: Any
    progress: bool
    about: Mapping[str, Any] = field(default_factory=dict)
    """What its results say of it."""
    words: Sequence[str] = ()
    """Model and text as they are typed behind a command."""
    variants: Sequence[TrainedVariant] = ()
    """Models that were trained to be compared with it."""

    def line(self, command: str, *options: str) -> str:
        """A command on this model, as it is typed."""
        return shlex.join(["fastprobe", command, *self.words, *options])

    @property
    def points(self) -> ModelPoints:
        return resolve(self.model)

    @property
    def depth(self) -> int:
        return len(self.points.layers)


@dataclass(frozen=True)
class Analysis:
    """One result: how it is made in Python, and what is typed to make it again."""

    name: str
    """Of its folder."""
    caption: str
    """Of its figure."""
    command: Callable[[Subject], str]
    run: Callable[[Subject], Result]
    variant: str = ""
    """The variant that is asked, if it is not the model itself."""
    derived: bool = False
    """It is made of what is there, so that there is nothing to go on with."""


class Finding(NamedTuple):
    """Whether a criterion is met, ``None`` where this model cannot tell, and the numbers that say so."""

    holds: bool | None
    numbers: str


@dataclass(frozen=True)
class Claim:
    """Something that the paper found, and what would have to be seen here for it to hold."""

    label: str
    """How surely the paper is known to say so: a key of :data:`LABELS`."""
    text: str
    criterion: str
    check: Callable[[Results], Finding]


class Table(NamedTuple):
    """Numbers that a reader should see beside the figure."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


@dataclass(frozen=True)
class Section:
    """A question, the analyses that ask it, and what the paper found."""

    name: str
    title: str
    question: str
    protocol: str
    """How it is asked here, and how that differs from the paper."""
    analyses: Sequence[Analysis]
    claims: Sequence[Claim]
    table: Callable[[Results], Table]


SURE = 2
"""Standard errors; a difference of no more is undecided."""

LABELS = {
    "A": "the abstract of the paper says so",
    "N": "one reader's notes on the paper say so; not checked against it",
    "F": "a check of fastprobe's own",
}


def damage(result: Result) -> str:
    """The column that says what was lost: of predictions where there is a head, else of the last states."""
    return "delta_loss" if result.rows[0].get("delta_loss") is not None else "relative_l2"


def decided(difference: float, error: float) -> bool | None:
    """Whether a number is above zero; ``None`` where it is within :data:`SURE` standard errors of it."""
    return None if abs(difference) <= SURE * error else difference > 0


def mean(values: Iterable[float]) -> float:
    """The mean of at least one number."""
    numbers = list(values)
    return sum(numbers) / len(numbers)


def number(value: float) -> str:
    """A number as the page writes it."""
    return f"{round(value, 3) + 0.0:.3f}"  # no minus before a zero
