"""The section on non-linearity by element and layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastprobe.replication.section import Analysis, Claim, Finding, Results, Section, Subject, Table, mean, number
from fastprobe.results.result import Result
from fastprobe.scan.linearity import linearity

NAME = "nonlinearity"
ELEMENTS = ("layer", "attention", "ffn", "attn", "attn_proj", "mlp")
STRONG = 0.5
"""Of the variance: more of it is out of a linear map's reach than within."""
TREND = 0.5
"""A correlation over layers."""


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
    return replace(scan, moments=None)  # hundreds of megabytes for a large model, and no number here needs them


def _command(subject: Subject) -> str:
    return subject.line("linearity", "--elements", ",".join(_elements(subject)), "--objective", "cosine")


def _by_layer(results: Results, element: str) -> list[float]:
    """The non-linearity of an element, layer by layer; empty for a model without it."""
    return [row["nonlinearity"] for row in results[NAME].rows if row["element"] == element]


def _strong(results: Results) -> Finding:
    values = _by_layer(results, "mlp")
    if not values:
        return Finding(None, "This model has no MLPs.")
    return Finding(mean(values) > STRONG, f"The mean is {number(mean(values))}.")


def _in_the_middle(results: Results) -> Finding:
    values = _by_layer(results, "mlp")
    depth = len(values)
    if depth < 3:
        return Finding(None, f"{depth} layers with MLPs have no middle.")
    middle = [layer for layer in range(depth) if depth / 3 <= layer < 2 * depth / 3]
    most = int(np.argmax(values))
    return Finding(
        most in middle,
        f"It is layer {most} ({number(values[most])}); the middle third is {', '.join(map(str, middle))}.",
    )


def _alike(results: Results) -> Finding:
    mlp, attn = _by_layer(results, "mlp"), _by_layer(results, "attn")
    if len(mlp) < 3:
        return Finding(None, f"{len(mlp)} layers with MLPs make no trend.")
    correlation = float(np.corrcoef(mlp, attn)[0, 1])
    return Finding(correlation > TREND, f"The correlation is {number(correlation)}.")


def _table(results: Results) -> Table:
    header = ("element", "layer", "non-linearity", "± se", "cosine fit", "anisotropy")
    keys = ("nonlinearity", "r2_cv_se", "cosine_objective", "anisotropy")
    return Table(header, [(row["element"], row["layer"], *(row[key] for key in keys)) for row in results[NAME].rows])


SECTION = Section(
    name=NAME,
    title="Non-linearity by element and layer",
    question="How much of what an element gives is out of reach of a linear map of what it gets, token by token?",
    protocol=(
        "The best affine map from input to output by least squares; non-linearity is 1 − r2 on held-out sequences, of "
        "five folds. attn_proj is affine and must be zero. The paper trains a map on a cosine loss with Adam and "
        "corrects the mean cosine for anisotropy; “cosine fit”, the mean cosine of a fit to unit-norm targets, is "
        "nearest to that, to be read against “cone”, the mean cosine of two tokens."
    ),
    analyses=[Analysis(NAME, "Non-linearity of every element over layers.", _command, _run)],
    claims=[
        Claim(
            "N", "MLPs are strongly non-linear.", f"non-linearity of mlp over {STRONG} in the mean over layers", _strong
        ),
        Claim("N", "They are most so in middle layers.", "mlp is most non-linear in the middle third", _in_the_middle),
        Claim(
            "N",
            "Self-attention follows the same trend.",
            f"attn and mlp correlate over layers by more than {TREND}",
            _alike,
        ),
    ],
    table=_table,
)
