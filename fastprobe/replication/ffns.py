"""The section on FFNs that are removed or replaced by linear maps."""

from __future__ import annotations

from fastprobe.ablations.ablation import ablation
from fastprobe.errors import UnsupportedModelError
from fastprobe.replication.evidence import (
    Estimate,
    column_estimate,
    decide,
    exceeds_zero,
    mean_estimate,
    too_few_tokens,
)
from fastprobe.replication.reordering import SCORED
from fastprobe.replication.section import (
    Analysis,
    Claim,
    Finding,
    Results,
    Section,
    Subject,
    Table,
    damage_column,
    number,
)
from fastprobe.results.result import Result

NAME = "ffns"
ELEMENTS = ("mlp", "attn")
MODES = ("zero", "linear", "random_init")
REPAIRED = 0.2
"""Share of the damage of removal. A linear map that repairs less is about as bad as removal."""


def _run(subject: Subject) -> Result:
    if not subject.points.has_ffn:
        raise UnsupportedModelError("this model has no FFN to remove")
    return ablation(
        subject.model, subject.predicted, elements=ELEMENTS, mode=MODES, layers="each", progress=subject.progress
    )


def _command(subject: Subject) -> str:
    return subject.command_line("ablate", "--elements", ",".join(ELEMENTS), "--mode", ",".join(MODES))


def _mean_damage(results: Results, element: str, mode: str) -> Estimate:
    result = results[NAME]
    rows = [row for row in result.rows if (row["element"], row["mode"]) == (element, mode)]
    return mean_estimate(column_estimate(row, damage_column(result)) for row in rows)


def _ffn_removal_does_less_damage(results: Results) -> Finding:
    mlp, attn = _mean_damage(results, "mlp", "zero"), _mean_damage(results, "attn", "zero")
    found = f"Without mlp {number(mlp.value)}, without attn {number(attn.value)}."
    return decide(attn.minus(mlp), results[NAME].config["tokens"], found)


def _linear_map_repairs_little(results: Results) -> Finding:
    config = results[NAME].config
    if refusal := too_few_tokens(config):
        return refusal
    removed, linear = _mean_damage(results, "mlp", "zero"), _mean_damage(results, "mlp", "linear")
    if exceeds_zero(removed) is False or removed.value <= 0:
        return Finding(None, f"Removal does no damage ({number(removed.value)}), so there is nothing to repair.")
    repaired = 1 - linear.value / removed.value
    numbers = f"Removed {number(removed.value)}, linear {number(linear.value)}"
    if exceeds_zero(removed) is None:
        return decide(removed, config["tokens"], f"{numbers}.")
    left = linear.minus(removed, 1 - REPAIRED)
    return decide(left, config["tokens"], f"{numbers}: {number(repaired)} of the damage is repaired.")


def _table(results: Results) -> Table:
    result = results[NAME]
    values = result.matrix(damage_column(result))
    header = ("element", "mode", *(f"layer {layer}" for layer in result.config["sets"]))
    few = too_few_tokens(result.config)
    rows = zip(result.lines, values, strict=True)
    unsaid = [few.numbers if few else None] + [None] * (len(result.config["sets"]) - 1)
    return Table(header, [(*line, *(unsaid if few and line[1] == "linear" else map(float, row))) for line, row in rows])


SECTION = Section(
    name=NAME,
    title="FFNs removed or made linear",
    question="How much damage does the removal of an FFN do, and how much of it does the best linear map repair?",
    protocol=(
        "One layer is edited at a time. Its skip connection and LayerNorm stay. zero removes the output of mlp or "
        "attn. linear replaces it by a least-squares map, fitted on the other folds. random_init replaces the weights "
        "by untrained ones, as the published script does in what it calls removal. "
        f"{SCORED} The claim that attention cannot replace FFNs [A] needs models that are trained from scratch: run "
        "fastprobe paper --train."
    ),
    analyses=[Analysis(NAME, "Damage by layer, element and replacement.", _command, _run)],
    claims=[
        Claim(
            "N",
            "Removing MLPs costs less than removing self-attention.",
            "the mean damage over layers is smaller for mlp removed (zero) than for attn removed",
            _ffn_removal_does_less_damage,
        ),
        Claim(
            "N",
            "Linear MLPs do little better than no MLPs: the non-linear part matters.",
            f"the linear map repairs less than {REPAIRED} of the mean damage of removal",
            _linear_map_repairs_little,
        ),
    ],
    table=_table,
)
