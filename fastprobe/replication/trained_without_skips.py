"""The section on models that are trained without skip connections in some layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from fastprobe.pretraining import TrainedVariant
from fastprobe.pretraining.variant_set import BERT
from fastprobe.pretraining.variants import Variant
from fastprobe.replication.evidence import Estimate, decide
from fastprobe.replication.losses import VariantLosses
from fastprobe.replication.reordering import SCORED, SWAPS, reordered, swapped_pair
from fastprobe.replication.section import (
    NOISE,
    Claim,
    Finding,
    Results,
    Section,
    Table,
    damage_column,
    mean,
    number,
)
from fastprobe.replication.skips_cut import MAINLY, WITH, commutators
from fastprobe.replication.variants import BEYOND_NOISE
from fastprobe.replication.variants import NAME as LOSSES

NAME = "trained-without-skips"
SWAPPED = "swaps"
Pairs = Mapping[tuple[int, int], tuple[float, float]]
"""Two layers (i, j) -> a measurement and its standard error."""


def _of_swaps(result: Any) -> Pairs:
    column = damage_column(result)
    return {swapped_pair(row): (row[column], row[f"{column}_se"]) for row in result.rows[1:]}


def _of_commutators(result: Any) -> Pairs:
    return {(row["i"], row["j"]): (row["relative_l2"], row["relative_l2_se"]) for row in result.rows}


def _mean_over_pairs(pairs: Pairs, layers: Iterable[int]) -> tuple[float, float]:
    """Return the mean over the pairs that contain one of the layers, and its standard error.

    The errors of the pairs are taken as fully correlated, so that the standard error is their mean.
    """
    chosen = [value for pair, value in pairs.items() if set(pair) & set(layers)]
    return mean(value for value, _ in chosen), mean(error for _, error in chosen)


def _mainly_skips(variant: str, analysis: str, pairs_of: Callable[[Any], Pairs]) -> Callable[[Results], Finding]:
    """Return the check that compares the pairs of a variant with those of BERT."""

    def check(results: Results) -> Finding:
        losses: VariantLosses = results[LOSSES]
        if reason := losses.not_comparable(BERT, variant):
            return Finding(None, reason)
        layers = Variant.parse(variant).no_skip
        bert, bert_se = _mean_over_pairs(pairs_of(results[analysis]), layers)
        cut, cut_se = _mean_over_pairs(pairs_of(results[f"{analysis}-{variant}"]), layers)
        margin = Estimate(cut, cut_se).minus(Estimate(bert, bert_se), MAINLY)
        found = f"{variant} {number(cut)} ± {number(cut_se)}, {BERT} {number(bert)} ± {number(bert_se)}"
        found += f": {number(cut / bert)} times as large." if bert > 0 else "."
        return decide(margin, results[analysis].config["tokens"], found)

    return check


def _table(results: Results, models: Iterable[str]) -> Table:
    columns = {f"{SWAPPED}{name}": _of_swaps(results[f"{SWAPPED}{name}"]) for name in models}
    columns |= {f"{WITH}{name}": _of_commutators(results[f"{WITH}{name}"]) for name in models}
    header = ["layers", *(word for name in columns for word in (name, "± se"))]
    return Table(
        header,
        [(f"{i} {j}", *(n for pairs in columns.values() for n in pairs[i, j])) for i, j in columns[SWAPPED]],
    )


def _claims(variant: str) -> list[Claim]:
    """Return the claims about one variant ``no-skip:LAYERS``."""
    layers = Variant.parse(variant).no_skip
    numbers = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
    text = f"The bias of BERT towards layers that commute is mainly due to the skip connections ({variant}"
    trained = f"if the model is trained without skip connections in {numbers}"
    return [
        Claim(
            "A",
            f"{text}, swaps).",
            f"{trained}, swaps of those layers do on average at least {MAINLY} times as much damage as in bert, "
            f"{BEYOND_NOISE}",
            _mainly_skips(variant, SWAPPED, _of_swaps),
        ),
        Claim(
            "A",
            f"{text}, commutators).",
            f"{trained}, the commutators of those layers are on average at least {MAINLY} times as large as in bert, "
            f"{BEYOND_NOISE}",
            _mainly_skips(variant, WITH, _of_commutators),
        ),
    ]


def section(trained: list[TrainedVariant]) -> Section | None:
    """Return the section on the variants that lack skip connections and nothing else, or ``None`` without any."""
    without = [one for one in trained if one.variant.startswith("no-skip:") and "+" not in one.variant]
    if not without:
        return None
    analyses = [SWAPS.analyses[0], commutators(caption="Commutators of bert.")]
    for one in without:
        name = one.variant
        if one.result is not None:
            analyses.append(
                reordered(f"{SWAPPED}-{name}", f"Damage of every swap, {name}.", lambda depth: ["swaps"], name)
            )
            analyses.append(commutators(f"{WITH}-{name}", f"Commutators of {name}.", name))
    return Section(
        name=NAME,
        title="Models trained without skip connections in some layers",
        question="Do layers that are trained without a skip connection commute with the others?",
        protocol=(
            "As in the paper, a model is trained without the skip connections of some layers, and pairs of layers "
            "are swapped. The learning rates are those in the table of variants. Means are over the pairs that contain "
            f"one of those layers. A difference within {NOISE} standard errors of the threshold is undecided. One "
            f"seed of each variant is trained. {SCORED} Commutators are a method of fastprobe."
        ),
        analyses=analyses,
        claims=[claim for one in without for claim in _claims(one.variant)],
        table=partial(_table, models=["", *(f"-{one.variant}" for one in without if one.result is not None)]),
    )
