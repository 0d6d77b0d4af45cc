"""The sections on swapped, shuffled and repeated layers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastprobe import orders
from fastprobe.orders.changes import layers_kept, swapped_layers
from fastprobe.reordering.commutativity import commutativity
from fastprobe.replication.evidence import Estimate, column_estimate, decide, mean_estimate, value_of
from fastprobe.replication.section import (
    Analysis,
    Claim,
    Finding,
    Results,
    Section,
    Subject,
    Table,
    damage_column,
    mean,
    number,
)
from fastprobe.results.result import Result

SHUFFLES = 10
"""Largest number of orders for each number of layers in place. The paper has 100."""
SHARED = 2 / 12, 5 / 12
"""Range of the layers that are best to share in the paper, as shares of the depth: layers 2 to 5 of 12, from 0."""

SCORED = (
    "Damage is the increase of the loss at the predicted tokens if the model has a language-model head. Otherwise it "
    "is the relative distance of the final hidden states from the baseline's. The paper measures accuracy on GLUE "
    "after fine-tuning; here, nothing is fine-tuned."
)
"""Sentences on the measure of damage, for the protocols."""


def reordered(name: str, caption: str, families: Callable[[int], Sequence[str]], variant: str = "") -> Analysis:
    """Return an analysis of several families of orders.

    Args:
        name: name of its folder.
        caption: caption of its figure.
        families: number of layers -> names of families, as on the command line.
        variant: the trained variant to analyse; empty for the model itself.
    """

    def run(subject: Subject) -> Result:
        chosen = [order for family in families(subject.depth) for order in orders.named(family, subject.depth)]
        return commutativity(subject.model, subject.predicted, chosen, progress=subject.progress)

    def command(subject: Subject) -> str:
        return subject.command_line(
            "permute", *(word for family in families(subject.depth) for word in ("--orders", family))
        )

    return Analysis(name, caption, command, run, variant)


def _grouped(result: Any, key: Callable[[dict[str, Any]], int]) -> dict[int, list[Estimate]]:
    """Group the damage of every order except the baseline by a number of its row, in ascending sequence."""
    found: dict[int, list[Estimate]] = {}
    column = damage_column(result)
    for row in sorted(result.rows[1:], key=key):
        found.setdefault(key(row), []).append(column_estimate(row, column))
    return found


def _summary(label: str, result: Any, groups: dict[int, list[Estimate]]) -> Table:
    header = (label, "orders", f"mean {damage_column(result)}", "smallest", "largest")
    values = {key: [one.value for one in group] for key, group in groups.items()}
    return Table(header, [(k, len(v), mean(v), min(v), max(v)) for k, v in values.items()])


def _listed(groups: dict[int, list[Estimate]]) -> str:
    return ", ".join(f"{key}: {number(mean_estimate(values).value)}" for key, values in groups.items())


def swapped_pair(row: dict[str, Any]) -> tuple[int, int]:
    """Return the layers (i, j), i < j, of the row of a swap."""
    order = orders.parse(row["order"])
    pair = swapped_layers(order, len(order))
    assert pair is not None, f"{order} is not a swap"
    return pair


def _distance(row: dict[str, Any]) -> int:
    i, j = swapped_pair(row)
    return j - i


def _distances(results: Results) -> dict[int, list[Estimate]]:
    return _grouped(results["swaps"], _distance)


def _damage_grows_with_distance(results: Results) -> Finding:
    groups = _distances(results)
    inner = [mean_estimate(values) for distance, values in groups.items() if distance < max(groups)]
    if len(inner) < 2:
        return Finding(None, f"A model of {max(groups) + 1} layers has too few distances.")
    steps = [b.minus(a) for a, b in itertools.pairwise(inner)]
    return decide(steps, results["swaps"].config["tokens"], f"Mean damage by distance: {_listed(groups)}.")


def _first_and_last_do_less_damage(results: Results) -> Finding:
    groups = _distances(results)
    furthest = max(groups)
    if furthest < 2:
        return Finding(None, "There is only one distance.")
    ends, before = mean_estimate(groups[furthest]), mean_estimate(groups[furthest - 1])
    found = f"First and last: {number(ends.value)}; at distance {furthest - 1}: {number(before.value)}."
    return decide(before.minus(ends), results["swaps"].config["tokens"], found)


def _kept(row: dict[str, Any]) -> int:
    order = orders.parse(row["order"])
    kept = layers_kept(order, len(order))
    assert kept is not None, f"{order} is not a permutation"
    return kept


def _damage_falls_with_kept_layers(results: Results) -> Finding:
    groups = _grouped(results["shuffles"], _kept)
    means = [mean_estimate(values) for values in groups.values()]
    if len(means) < 2:
        return Finding(None, "There is only one number of layers in place.")
    steps = [a.minus(b) for a, b in itertools.pairwise(means)]
    return decide(steps, results["shuffles"].config["tokens"], f"Mean damage by layers in place: {_listed(groups)}.")


def _damage_of_one_layer(results: Results) -> list[Estimate]:
    """Return the damage of each layer if it runs in the place of all layers."""
    result = results["repetition"]
    column = damage_column(result)
    return [column_estimate(row, column) for row in result.rows if len(set(row["order"].split(","))) == 1]


def _best_shared_layer_is_early(results: Results) -> Finding:
    values = _damage_of_one_layer(results)
    best = int(np.argmin([one.value for one in values]))
    low, high = (share * len(values) for share in SHARED)
    if len(values) < 3:
        return Finding(None, f"{len(values)} layers are too few.")
    inside = [one for layer, one in enumerate(values) if low <= layer <= high]
    outside = min((one for layer, one in enumerate(values) if not low <= layer <= high), key=value_of)
    found = f"The best is layer {best} ({number(values[best].value)}); the range is {number(low)} to {number(high)}."
    if not inside:
        return Finding(False, found)
    return decide(outside.minus(min(inside, key=value_of)), results["repetition"].config["tokens"], found)


def _repetition_table(results: Results) -> Table:
    result = results["repetition"]
    column = damage_column(result)
    return Table(("order", column, "± se"), [(r["name"], r[column], r[f"{column}_se"]) for r in result.rows])


SWAPS = Section(
    name="swaps",
    title="Damage by swap distance",
    question="How much damage does a swap of two layers do, and does it grow with their distance?",
    protocol=f"Every pair of layers is swapped, one pair at a time. {SCORED}",
    analyses=[reordered("swaps", "Damage of every swap.", lambda depth: ["swaps"])],
    claims=[
        Claim(
            "N",
            "Swaps over a longer distance are worse.",
            "the mean damage grows with every step of distance, without the swap of the first and last layer",
            _damage_grows_with_distance,
        ),
        Claim(
            "N",
            "The swap of the very first and last layers is an exception.",
            "the swap of the first and last layer does less damage than the mean of swaps with a distance one smaller",
            _first_and_last_do_less_damage,
        ),
    ],
    table=lambda results: _summary("distance", results["swaps"], _distances(results)),
)

SHUFFLED = Section(
    name="shuffles",
    title="Shuffles with some layers in place",
    question="How does the damage of a shuffle depend on the number of layers that stay in place?",
    protocol=f"At most {SHUFFLES} shuffles for each number of layers in place; seed 0. The paper runs 100. {SCORED}",
    analyses=[
        reordered(
            "shuffles",
            "Dots are shuffles, squares are means.",
            lambda depth: [f"shuffle:fixed={kept},count={SHUFFLES}" for kept in range(depth - 1)],
        )
    ],
    claims=[
        Claim(
            "N",
            "Performance falls monotonically as fewer layers are kept.",
            "the mean damage falls with every additional layer in place",
            _damage_falls_with_kept_layers,
        )
    ],
    table=lambda results: _summary("layers in place", results["shuffles"], _grouped(results["shuffles"], _kept)),
)

REPETITION = Section(
    name="repetition",
    title="Repetition by layer",
    question="Which layer can run twice, and which can replace all others?",
    protocol=(
        "“only i-j” runs layer i, and no other, as many times as the model has layers. “2 times i” runs layer i twice. "
        f"{SCORED}"
    ),
    analyses=[reordered("repetition", "Damage of every order.", lambda depth: ["cycles", "repeats"])],
    claims=[
        Claim(
            "N",
            "The best layers to share are about 2 to 5 of BERT-base's 12.",
            "the layer that does the least damage in the place of all others lies at 2/12 to 5/12 of the depth, from 0",
            _best_shared_layer_is_early,
        )
    ],
    table=_repetition_table,
)
