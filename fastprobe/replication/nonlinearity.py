"""The section on the non-linearity of each element and layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastprobe.replication.section import Analysis, Claim, Finding, Results, Section, Subject, Table, mean, number
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


def _by_layer(results: Results, element: str) -> list[float]:
    """Return the non-linearity of an element by layer. Empty if the model does not have the element."""
    return [row["nonlinearity"] for row in results[NAME].rows if row["element"] == element]


def _strongly_nonlinear(results: Results) -> Finding:
    values = _by_layer(results, "mlp")
    if not values:
        return Finding(None, "This model has no MLPs.")
    return Finding(mean(values) > STRONG, f"The mean is {number(mean(values))}.")


def _most_in_the_middle(results: Results) -> Finding:
    values = _by_layer(results, "mlp")
    depth = len(values)
    if depth < 3:
        return Finding(None, f"{depth} layers with MLPs are too few.")
    middle = [layer for layer in range(depth) if depth / 3 <= layer < 2 * depth / 3]
    most = int(np.argmax(values))
    found = f"The most non-linear is layer {most} ({number(values[most])})"
    return Finding(most in middle, f"{found}; the middle third is {', '.join(map(str, middle))}.")


def _same_trend(results: Results) -> Finding:
    mlp, attn = _by_layer(results, "mlp"), _by_layer(results, "attn")
    if len(mlp) < 3:
        return Finding(None, f"{len(mlp)} layers with MLPs are too few.")
    correlation = float(np.corrcoef(mlp, attn)[0, 1])
    return Finding(correlation > TREND, f"The correlation is {number(correlation)}.")


def _table(results: Results) -> Table:
    header = ("element", "layer", "non-linearity", "± se", "cosine fit", "anisotropy")
    keys = ("nonlinearity", "r2_cv_se", "cosine_objective", "anisotropy")
    return Table(header, [(row["element"], row["layer"], *(row[key] for key in keys)) for row in results[NAME].rows])


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
