"""The section on FFNs removed and made linear."""

from __future__ import annotations

from fastprobe.ablations.ablation import ablation
from fastprobe.errors import UnsupportedModelError
from fastprobe.replication.reordering import SCORED
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

NAME = "ffns"
ELEMENTS = ("mlp", "attn")
MODES = ("zero", "linear", "random_init")
REPAIRED = 0.2
"""Of the damage of removal: a linear map that repairs less does about as well as none."""


def _run(subject: Subject) -> Result:
    if not subject.points.has_ffn:
        raise UnsupportedModelError("this model has no FFN that could be removed")
    return ablation(
        subject.model, subject.predicted, elements=ELEMENTS, mode=MODES, layers="each", progress=subject.progress
    )


def _command(subject: Subject) -> str:
    return subject.line("ablate", "--elements", ",".join(ELEMENTS), "--mode", ",".join(MODES))


def _mean(results: Results, element: str, mode: str) -> float:
    result = results[NAME]
    rows = [row for row in result.rows if (row["element"], row["mode"]) == (element, mode)]
    return mean(row[damage(result)] for row in rows)


def _ffn_costs_less(results: Results) -> Finding:
    mlp, attn = _mean(results, "mlp", "zero"), _mean(results, "attn", "zero")
    return Finding(mlp < attn, f"Without mlp {number(mlp)}, without attn {number(attn)}.")


def _linear_is_as_removed(results: Results) -> Finding:
    removed, linear = _mean(results, "mlp", "zero"), _mean(results, "mlp", "linear")
    if removed <= 0:
        return Finding(None, f"Removing costs nothing ({number(removed)}), so there is nothing to repair.")
    repaired = 1 - linear / removed
    return Finding(
        repaired < REPAIRED, f"Removed {number(removed)}, linear {number(linear)}: {number(repaired)} is repaired."
    )


def _table(results: Results) -> Table:
    result = results[NAME]
    values = result.matrix(damage(result))
    header = ("element", "mode", *(f"layer {layer}" for layer in result.config["sets"]))
    return Table(header, [(*line, *map(float, row)) for line, row in zip(result.lines, values, strict=True)])


SECTION = Section(
    name=NAME,
    title="FFNs removed and made linear",
    question="What is lost without an FFN, or with the best linear map in its place?",
    protocol=(
        "One layer at a time; residual and LayerNorm stay. zero takes mlp or attn out; linear puts in the "
        "least-squares map of the other folds; random_init untrained matrices, which is what the published script does "
        f"to what it calls removed. {SCORED} Whether attention can replace FFNs [A] is asked of models trained from "
        "scratch: fastprobe paper --train."
    ),
    analyses=[Analysis(NAME, "Damage by layer, element and what is put in its place.", _command, _run)],
    claims=[
        Claim(
            "N",
            "Removing MLPs costs less than removing self-attention.",
            "mean damage over layers of mlp removed (zero) is below that of attn removed",
            _ffn_costs_less,
        ),
        Claim(
            "N",
            "MLPs made linear do about as well as none: what matters is the non-linear part.",
            f"the linear map repairs less than {REPAIRED} of the mean damage of removal",
            _linear_is_as_removed,
        ),
    ],
    table=_table,
)
