"""The section on the non-linearity of each element and layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastprobe.regression.evidence import NEEDED, cannot_be_said, is_undecided, tokens_for_map
from fastprobe.replication.evidence import (
    Estimate,
    column_estimate,
    decide,
    mean_estimate,
    propagate,
    undecided,
    value_of,
)
from fastprobe.replication.section import Analysis, Claim, Finding, Results, Section, Subject, Table, number
from fastprobe.results.result import Result
from fastprobe.scan.linearity import linearity

NAME = "nonlinearity"
ELEMENTS = ("layer", "attention", "ffn", "attn", "attn_proj", "mlp")
STRONG = 0.5
"""Share of the variance. Above it, a linear map leaves more variance unexplained than it explains."""
TREND = 0.5
"""Correlation over layers."""


def _elements(subject: Subject) -> list[str]:
    return [name for name in ELEMENTS if name in subject.points.elements]


def _run(subject: Subject) -> Result:
    scan = linearity(
        subject.model,
        subject.batches,
        elements=_elements(subject),
        objective="cosine",
        progress=subject.progress,
    )
    return replace(scan, moments=None)  # hundreds of megabytes for a large model, and not used here


def _command(subject: Subject) -> str:
    return subject.command_line("linearity", "--elements", ",".join(_elements(subject)), "--objective", "cosine")


def _by_layer(results: Results, element: str) -> list[Estimate]:
    """Return the non-linearity of an element by layer. Empty if the model does not have the element."""
    rows = [row for row in results[NAME].rows if row["element"] == element and row["nonlinearity"] is not None]
    return [column_estimate(row, "nonlinearity", "r2_cv_se") for row in rows]


def _not_enough(results: Results, *estimates: Estimate, layers: int = 1) -> Finding | None:
    """Return an undecided finding if there are too few layers or tokens, or if a non-linearity is out of its range."""
    config, depth = results[NAME].config, len(estimates)
    if depth < layers:
        return Finding(None, f"{depth} layers with MLPs are too few." if depth else "This model has no MLPs.")
    worst = max(one.value for one in estimates)
    needed = tokens_for_map(config["tokens"], config.get("columns", 0), worst)
    return undecided(config["tokens"], needed) if needed else None


def _strongly_nonlinear(results: Results) -> Finding:
    values = _by_layer(results, "mlp")
    if refusal := _not_enough(results, *values):
        return refusal
    average = mean_estimate(values)
    found = f"The mean is {number(average.value)}."
    return decide(average.minus(Estimate(STRONG, 0.0)), results[NAME].config["tokens"], found)


def _most_in_the_middle(results: Results) -> Finding:
    values = _by_layer(results, "mlp")
    if refusal := _not_enough(results, *values, layers=3):
        return refusal
    depth = len(values)
    middle = [layer for layer in range(depth) if depth / 3 <= layer < 2 * depth / 3]
    most = int(np.argmax([one.value for one in values]))
    found = f"The most non-linear is layer {most} ({number(values[most].value)})"
    inside = max((values[layer] for layer in middle), key=value_of)
    outside = max((one for layer, one in enumerate(values) if layer not in middle), key=value_of)
    tokens = results[NAME].config["tokens"]
    return decide(inside.minus(outside), tokens, f"{found}; the middle third is {', '.join(map(str, middle))}.")


def _same_trend(results: Results) -> Finding:
    mlp, attn = _by_layer(results, "mlp"), _by_layer(results, "attn")
    if refusal := _not_enough(results, *mlp, layers=3) or _not_enough(results, *attn):
        return refusal
    correlation = propagate(
        lambda values: float(np.corrcoef(values[: len(mlp)], values[len(mlp) :])[0, 1]), [*mlp, *attn]
    )
    found = f"The correlation is {number(correlation.value)}."
    return decide(correlation.minus(Estimate(TREND, 0.0)), results[NAME].config["tokens"], found)


def _table(results: Results) -> Table:
    header = ("element", "layer", "non-linearity", "± se", "cosine fit", "anisotropy")
    keys = ("nonlinearity", "r2_cv_se", "cosine_objective", "anisotropy")
    return Table(
        header,
        [
            (row["element"], row["layer"], *(row[key] for key in keys))
            if not is_undecided(row)
            else (
                row["element"],
                row["layer"],
                cannot_be_said(row["tokens"], row[NEEDED]),
                None,
                None,
                row["anisotropy"],
            )
            for row in results[NAME].rows
        ],
    )


SECTION = Section(
    name=NAME,
    title="Non-linearity by element and layer",
    question="How much of the output of an element can no linear map of its input predict, token by token?",
    protocol=(
        "The affine map from input to output is fitted by least squares. Non-linearity is 1 − r2 on held-out "
        "sequences, with five folds. attn_proj is affine, so its non-linearity must be zero. The paper trains a map "
        "on a cosine loss with Adam and corrects the mean cosine for anisotropy. The column closest to that is “cosine "
        "fit”, the mean cosine of a fit to unit-norm targets. Compare it with “anisotropy”, the mean cosine of "
        "two tokens."
    ),
    analyses=[Analysis(NAME, "Non-linearity of every element by layer.", _command, _run)],
    claims=[
        Claim(
            "N",
            "MLPs are strongly non-linear.",
            f"the mean non-linearity of mlp over layers is above {STRONG}",
            _strongly_nonlinear,
        ),
        Claim(
            "N",
            "MLPs are most non-linear in middle layers.",
            "mlp is most non-linear in the middle third",
            _most_in_the_middle,
        ),
        Claim(
            "N",
            "Self-attention follows the same trend.",
            f"the correlation of attn and mlp over layers is above {TREND}",
            _same_trend,
        ),
    ],
    table=_table,
)
