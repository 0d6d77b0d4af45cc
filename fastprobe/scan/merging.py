"""Scans of several shards, texts or machines as one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastprobe.errors import InputError
from fastprobe.models.points import Element
from fastprobe.regression.least_squares import LeastSquares
from fastprobe.regression.moments import Moments
from fastprobe.scan.checkpoint import FILE
from fastprobe.scan.linearity import LinearityScan, solve_rows
from fastprobe.scan.plan import ElementFit

SHARED = ("model", "model_dtype", "fits", "exact")
"""What the configurations of merged scans must agree in; their plans must as well."""


def merge_scans(folders: Sequence[str | Path], method: LeastSquares) -> LinearityScan:
    """Add the moments of several scans up and score the sum.

    Sequences keep the folds they had. The cosine columns need the tokens themselves and stay empty.

    Raises:
        InputError: fewer than two folders, one named twice or without moments, or scans of different models or options.
    """
    if len(folders) < 2:
        raise InputError("merge: name two folders or more")
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise InputError("merge: a folder is named twice, and its tokens would count twice")
    total, config = Moments.load(Path(folders[0]) / FILE)
    texts = list(config.get("text", []))
    for folder in folders[1:]:
        moments, other = Moments.load(Path(folder) / FILE)
        for key in SHARED:
            if config.get(key) != other.get(key):
                raise InputError(f"merge: {folders[0]} and {folder} differ in {key}: they are not parts of one scan")
        total.merge_(moments)
        texts += other.get("text", [])
    fits = [ElementFit(Element(name, start, stop), x, y, unit) for name, start, stop, x, y, unit in config["fits"]]
    rows = solve_rows(fits, total, method)
    kept = {key: value for key, value in config.items() if key not in ("batches_done", "seconds", "sequences")}
    kept |= {"text": texts, "tokens": total.tokens, "alpha": method.alpha, "merged": [str(f) for f in folders]}
    return LinearityScan(kept, rows, total)
