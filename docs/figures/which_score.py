"""Make the pictures of docs/which_score.md: ``python docs/figures/which_score.py [FOLDER]``.

Each picture is one artificial case with a known answer, in which one score is misleading and another is not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["SOURCE_DATE_EPOCH"] = "0"  # SVG files without the date

import matplotlib
import torch
from torch import Tensor

import fastprobe as fp
from fastprobe.results.figure import draw
from fastprobe.results.views import COLOURS, DASHES, Line, Profiles, Style, View

SEQUENCES, LENGTH, WIDTH = 40, 50, 24


def rows(*shape: int) -> Tensor:
    """Return normal numbers, ``(SEQUENCES, LENGTH, *shape)``."""
    return torch.randn(SEQUENCES, LENGTH, *shape)


def nonlinear(x: Tensor) -> Tensor:
    """Return a function of x that no linear map explains: squares, with mean 0 and variance 1."""
    return (x**2 - 1) / 2**0.5


def lines(x_label: str, places: list[float], scores: dict[str, list[float]], y_label: str = "score") -> View:
    """Return a line for each score, solid for the one to use and dashed for the others."""
    drawn = [
        Line(values, name, Style(COLOURS[index], DASHES[min(index, 1)]), x=places)
        for index, (name, values) in enumerate(scores.items())
    ]
    return Profiles(drawn, x_label, y_label)


def columns(fit: fp.LinearFit, *names: str) -> list[float]:
    """Return some scores of a fit."""
    return [fit.score(name) for name in names]


def in_sample() -> View:
    """Show that ``r2`` grows with the number of columns although y has nothing to do with x."""
    widths = [25, 100, 200, 400, 600]
    names = ("r2_cv", "r2")
    found = [columns(fp.LinearFit(d, WIDTH).update(rows(d), rows(WIDTH)), *names) for d in widths]
    assert found[-1][1] > 0.25
    assert found[-1][0] < 0
    return lines(
        "columns of x (2,000 tokens)",
        [*map(float, widths)],
        {name: [*values] for name, values in zip(names, zip(*found, strict=True), strict=True)},
    )


def skip() -> View:
    """Show that a skip connection hides a non-linear part: ``nonlinearity`` of the sum and of the part alone."""
    scales = [0.0, 1.0, 2.0, 4.0, 8.0]
    x = rows(WIDTH)
    part = nonlinear(x)
    alone = fp.LinearFit(WIDTH, WIDTH).update(x, part).score("nonlinearity")
    sums = [fp.LinearFit(WIDTH, WIDTH).update(x, part + scale * x).score("nonlinearity") for scale in scales]
    assert sums[-1] < 0.05
    assert alone > 0.95
    return lines(
        "size of the skip connection", scales, {"part": [alone] * len(scales), "part + skip": sums}, "nonlinearity"
    )


def outliers() -> View:
    """Show that a few large columns of y decide ``r2_cv``: the others are not linear at all."""
    sizes = [1.0, 3.0, 10.0, 30.0]
    x = rows(WIDTH)
    scores: dict[str, list[float]] = {"r2_uniform": [], "r2_cv": []}
    for size in sizes:
        y = torch.cat([size * x[..., :2], nonlinear(x[..., 2:])], -1)
        fit = fp.LinearFit(WIDTH, WIDTH).update(x, y)
        for name, values in scores.items():
            values.append(fit.score(name))
    assert scores["r2_cv"][-1] > 0.95
    assert scores["r2_uniform"][-1] < 0.15
    return lines("size of the two linear columns", sizes, scores)


def mean_direction() -> View:
    """Show that the cosine is high for any map if all y point the same way."""
    lengths = [0.0, 1.0, 2.0, 4.0, 8.0]
    x, noise = rows(WIDTH), rows(WIDTH)
    scores: dict[str, list[float]] = {"r2_cv": [], "cosine": [], "anisotropy": []}
    for length in lengths:
        y = noise + length * torch.ones(WIDTH)
        fit = fp.LinearFit(WIDTH, WIDTH).update(x, y)
        unit = torch.nn.functional.normalize(y, dim=-1).flatten(0, 1)
        n = len(unit)
        scores["r2_cv"].append(fit.score("r2_cv"))
        scores["cosine"].append(float(torch.cosine_similarity(fit.solve()(x), y, dim=-1).mean()))
        scores["anisotropy"].append(float((unit.sum(0).norm() ** 2 - n) / (n * (n - 1))))
    assert scores["cosine"][-1] > 0.95
    assert max(scores["r2_cv"]) < 0.05
    return lines("length of the common part of y", lengths, scores)


def similarity() -> View:
    """Show that CKA is high if the largest directions agree, however small a share of the columns they are."""
    sizes = [1.0, 2.0, 4.0, 8.0]
    x, other = rows(WIDTH), rows(WIDTH)
    scores: dict[str, list[float]] = {"r2_uniform": [], "cka": []}
    for size in sizes:
        scale = torch.cat([torch.full((2,), size), torch.ones(WIDTH - 2)])
        y = torch.cat([x[..., :2], other[..., 2:]], -1) * scale
        fit = fp.LinearFit(WIDTH, WIDTH, cka=True).update(x * scale, y)
        for name, values in scores.items():
            values.append(fit.score(name))
    assert scores["cka"][-1] > 0.95
    assert scores["r2_uniform"][-1] < 0.15
    return lines("size of the two columns in common", sizes, scores)


def single_rows() -> View:
    """Show that single rows as folds let a map see the sequences that it is scored on."""
    noises = [0.05, 0.1, 0.2, 0.5, 1.0]
    topic, target = torch.randn(SEQUENCES, 1, WIDTH), torch.randn(SEQUENCES, 1, 1).expand(-1, LENGTH, -1)
    scores: dict[str, list[float]] = {"whole sequences held out": [], "single rows held out": []}
    for noise in noises:
        x = topic + noise * rows(WIDTH)
        pairs = ((x, target), (x.flatten(0, 1), target.flatten(0, 1)))
        for values, (one, other) in zip(scores.values(), pairs, strict=True):
            values.append(fp.LinearFit(WIDTH, 1).update(one, other).score("r2_cv"))
    assert scores["single rows held out"][0] > 0.5
    assert max(scores["whole sequences held out"]) < 0.1
    return lines("noise within a sequence", noises, scores)


PICTURES: dict[str, Callable[[], View]] = {
    "in_sample": in_sample,
    "skip": skip,
    "outliers": outliers,
    "mean_direction": mean_direction,
    "similarity": similarity,
    "single_rows": single_rows,
}


def main(folder: Path) -> None:
    """Write all pictures into a folder."""
    for name, make in PICTURES.items():
        torch.manual_seed(0)
        with matplotlib.rc_context({"svg.hashsalt": name}):  # the same bytes in every run
            draw("", "", [make()], folder / f"{name}.svg", "column")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
