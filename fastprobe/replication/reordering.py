"""The sections on layers swapped, shuffled and repeated."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastprobe import orders
from fastprobe.reordering.commutativity import commutativity
from fastprobe.replication.section import (
    Analysis,
    Claim,
    Finding,
    Results,
    Section,
    Subject,
    Table,
    damage,
    mean,
    number,
)
from fastprobe.results.result import Result

SHUFFLES = 10
"""Orders for every number of layers kept; the paper has 100."""
SHARED = 2 / 12, 5 / 12
"""Where, of 12 layers counted from 0, those lie that the paper shares best, as shares of the depth."""

SCORED = (
    "Damage is the rise of the loss at the tokens to be predicted where the model has a language-model head, else the "
    "distance of its last states from its own over their norm. The paper measures accuracy on GLUE after fine-tuning; "
    "here nothing is tuned."
)


def reordered(name: str, caption: str, families: Callable[[int], Sequence[str]], variant: str = "") -> Analysis:
    """An analysis of the orders that ``families`` names for a number of layers, as the command line has them."""

    def run(subject: Subject) -> Result:
        which = [order for family in families(subject.depth) for order in orders.named(family, subject.depth)]
        return commutativity(subject.model, subject.predicted, which, progress=subject.progress)

    def command(subject: Subject) -> str:
        return subject.line("permute", *(word for family in families(subject.depth) for word in ("--orders", family)))

    return Analysis(name, caption, command, run, variant)


def _grouped(result: Any, key: Callable[[dict[str, Any]], int]) -> dict[int, list[float]]:
    """The damage of every order but the model's own by a number that it has, from the least number."""
    found: dict[int, list[float]] = {}
    for row in sorted(result.rows[1:], key=key):
        found.setdefault(key(row), []).append(row[damage(result)])
    return found


def _summary(what: str, result: Any, groups: dict[int, list[float]]) -> Table:
    header = (what, "orders", f"mean {damage(result)}", "least", "most")
    return Table(header, [(k, len(v), mean(v), min(v), max(v)) for k, v in groups.items()])


def _listed(groups: dict[int, list[float]]) -> str:
    return ", ".join(f"{key}: {number(mean(values))}" for key, values in groups.items())


def _distance(row: dict[str, Any]) -> int:
    first, second = re.findall(r"\d+", row["name"])
    return int(second) - int(first)


def _distances(results: Results) -> dict[int, list[float]]:
    return _grouped(results["swaps"], _distance)


def _further_is_worse(results: Results) -> Finding:
    groups = _distances(results)
    inner = [mean(values) for distance, values in groups.items() if distance < max(groups)]
    if len(inner) < 2:
        return Finding(None, f"A model of {max(groups) + 1} layers has too few distances.")
    return Finding(all(a < b for a, b in itertools.pairwise(inner)), f"Mean damage by distance: {_listed(groups)}.")


def _ends_are_alike(results: Results) -> Finding:
    groups = _distances(results)
    furthest = max(groups)
    if furthest < 2:
        return Finding(None, "There is one distance only.")
    ends, before = mean(groups[furthest]), mean(groups[furthest - 1])
    return Finding(ends < before, f"First and last: {number(ends)}; at distance {furthest - 1}: {number(before)}.")


def _kept(row: dict[str, Any]) -> int:
    return sum(step == str(place) for place, step in enumerate(row["order"].split(",")))


def _fewer_is_worse(results: Results) -> Finding:
    groups = _grouped(results["shuffles"], _kept)
    means = [mean(values) for values in groups.values()]
    if len(means) < 2:
        return Finding(None, "There is one number of layers to keep only.")
    return Finding(all(a > b for a, b in itertools.pairwise(means)), f"Mean damage by layers kept: {_listed(groups)}.")


def _alone(results: Results) -> list[float]:
    """The damage of each layer run again and again in the place of all."""
    result = results["repetition"]
    return [row[damage(result)] for row in result.rows if row["name"].startswith("only ")]


def _shared_early(results: Results) -> Finding:
    values = _alone(results)
    best = int(np.argmin(values))
    low, high = (share * len(values) for share in SHARED)
    if len(values) < 3:
        return Finding(None, f"{len(values)} layers are too few to tell.")
    return Finding(
        low <= best <= high,
        f"It is layer {best} ({number(values[best])}); that range is {number(low)} to {number(high)}.",
    )


def _repetition_table(results: Results) -> Table:
    result = results["repetition"]
    column = damage(result)
    return Table(("order", column, "± se"), [(r["name"], r[column], r[f"{column}_se"]) for r in result.rows])


SWAPS = Section(
    name="swaps",
    title="Damage by swap distance",
    question="What does it cost to interchange two layers, and does it cost more the further apart they are?",
    protocol=f"Every two layers interchanged, one pair at a time. {SCORED}",
    analyses=[reordered("swaps", "Damage of every swap.", lambda depth: ["swaps"])],
    claims=[
        Claim(
            "N",
            "Swaps over a longer distance are worse.",
            "mean damage grows with every step of distance, that of first and last left aside",
            _further_is_worse,
        ),
        Claim(
            "N",
            "Except for the very first and last layers.",
            "swapping first and last costs less than the mean of swaps one step closer",
            _ends_are_alike,
        ),
    ],
    table=lambda results: _summary("distance", results["swaps"], _distances(results)),
)

SHUFFLED = Section(
    name="shuffles",
    title="Layers kept in place",
    question="How does the damage of a shuffle fall with the number of layers that stay where they are?",
    protocol=f"At most {SHUFFLES} shuffles that keep exactly so many layers, seed 0; the paper runs 100. {SCORED}",
    analyses=[
        reordered(
            "shuffles",
            "A dot a shuffle; squares are means.",
            lambda depth: [f"shuffle:fixed={kept},count={SHUFFLES}" for kept in range(depth - 1)],
        )
    ],
    claims=[
        Claim(
            "N",
            "Performance falls monotonically as fewer layers are kept.",
            "mean damage falls with every layer more that is kept",
            _fewer_is_worse,
        )
    ],
    table=lambda results: _summary("layers kept", results["shuffles"], _grouped(results["shuffles"], _kept)),
)

REPETITION = Section(
    name="repetition",
    title="Repetition by layer",
    question="Which layer can run twice, and which can stand in for all?",
    protocol=f"“only i” runs layer i alone as often as the model has layers; “2 times i” runs it once more. {SCORED}",
    analyses=[reordered("repetition", "Damage of every order.", lambda depth: ["cycles", "repeats"])],
    claims=[
        Claim(
            "N",
            "The best layers to share are about 2 to 5 of BERT-base's 12.",
            "the layer that costs least alone is 2/12 to 5/12 of the depth down, counted from 0",
            _shared_early,
        )
    ],
    table=_repetition_table,
)
