"""The section on models trained without skip connections in some layers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from fastprobe.pretraining import TrainedVariant
from fastprobe.pretraining.variant_set import BERT
from fastprobe.pretraining.variants import Variant
from fastprobe.replication.losses import VariantLosses
from fastprobe.replication.reordering import SCORED, SWAPS, reordered
from fastprobe.replication.section import SURE, Claim, Finding, Results, Section, Table, damage, decided, mean, number
from fastprobe.replication.skipless import MAINLY, WITH, commutators
from fastprobe.replication.variants import BEYOND
from fastprobe.replication.variants import NAME as LOSSES

NAME = "unskipped"
SWAPPED = "swaps"
Pairs = Mapping[tuple[int, int], tuple[float, float]]
"""Two layers -> a number of them, and its standard error."""


def _of_swaps(result: Any) -> Pairs:
    column = damage(result)
    rows = {tuple(map(int, re.findall(r"\d+", row["name"]))): row for row in result.rows[1:]}
    return {(i, j): (row[column], row[f"{column}_se"]) for (i, j), row in rows.items()}


def _of_commutators(result: Any) -> Pairs:
    return {(row["i"], row["j"]): (row["relative_l2"], row["relative_l2_se"]) for row in result.rows}


def _over_pairs(pairs: Pairs, layers: Iterable[int]) -> tuple[float, float]:
    """The mean over the pairs that one of the layers is in; its error as if all pairs erred alike."""
    chosen = [value for pair, value in pairs.items() if set(pair) & set(layers)]
    return mean(value for value, _ in chosen), mean(error for _, error in chosen)


def _mainly_skips(variant: str, analysis: str, pairs_of: Callable[[Any], Pairs]) -> Callable[[Results], Finding]:
    def check(results: Results) -> Finding:
        losses: VariantLosses = results[LOSSES]
        if reason := losses.unfit(BERT, variant):
            return Finding(None, reason)
        layers = Variant.parse(variant).no_skip
        own, own_se = _over_pairs(pairs_of(results[analysis]), layers)
        cut, cut_se = _over_pairs(pairs_of(results[f"{analysis}-{variant}"]), layers)
        verdict = decided(cut - MAINLY * own, math.hypot(cut_se, MAINLY * own_se))
        found = f"{variant} {number(cut)} ± {number(cut_se)}, {BERT} {number(own)} ± {number(own_se)}"
        return Finding(verdict, f"{found}: {number(cut / own)} times." if own > 0 else f"{found}.")

    return check


def _table(results: Results, models: Iterable[str]) -> Table:
    columns = {f"{SWAPPED}{name}": _of_swaps(results[f"{SWAPPED}{name}"]) for name in models}
    columns |= {f"{WITH}{name}": _of_commutators(results[f"{WITH}{name}"]) for name in models}
    header = ["layers", *(word for name in columns for word in (name, "± se"))]
    return Table(
        header,
        [(f"{i} {j}", *(n for pairs in columns.values() for n in pairs[i, j])) for i, j in columns[SWAPPED]],
    )


def section(trained: list[TrainedVariant]) -> Section | None:
    """The section for the variants that cut skip connections and nothing else, if there are any."""
    cut = [one for one in trained if one.variant.startswith("no-skip:") and "+" not in one.variant]
    if not cut:
        return None
    analyses = [SWAPS.analyses[0], commutators(caption="Commutators of bert.")]
    claims = []
    for one in cut:
        name = one.variant
        if one.result is not None:
            analyses.append(
                reordered(f"{SWAPPED}-{name}", f"Damage of every swap, {name}.", lambda depth: ["swaps"], name)
            )
            analyses.append(commutators(f"{WITH}-{name}", f"Commutators of {name}.", name))
        layers = Variant.parse(name).no_skip
        of_layers = f"without skip connections in layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
        text = f"The bias of BERT towards layers that commute is mainly due to the skip connections ({name}"
        times = f"at least {MAINLY} times as"
        claims += [
            Claim(
                "A",
                f"{text}, swaps).",
                f"trained {of_layers}, swaps of those layers cost on average {times} much as in bert, {BEYOND}",
                _mainly_skips(name, SWAPPED, _of_swaps),
            ),
            Claim(
                "A",
                f"{text}, commutators).",
                f"trained {of_layers}, those layers are on average {times} far from commuting as in bert, {BEYOND}",
                _mainly_skips(name, WITH, _of_commutators),
            ),
        ]
    return Section(
        name=NAME,
        title="TrainedVariant without skip connections in some layers",
        question="Do layers that never had a skip connection commute with the others?",
        protocol=(
            "As in the paper, a model is trained without the skip connections of a layer, and layers are swapped; "
            "the learning rates are those of the table of variants. "
            f"The mean is over the pairs that one of those layers is in; what is within {SURE} standard errors of the "
            f"threshold is undecided, and one seed is trained of each. {SCORED} Commutators are fastprobe's own."
        ),
        analyses=analyses,
        claims=claims,
        table=partial(_table, models=["", *(f"-{one.variant}" for one in cut if one.result is not None)]),
    )
