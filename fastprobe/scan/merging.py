"""Merging of scans of several shards, texts or machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastprobe.data.shares import COUNTED
from fastprobe.errors import InputError
from fastprobe.models.points import Element
from fastprobe.regression.least_squares import LeastSquares
from fastprobe.regression.moments import Moments
from fastprobe.scan.checkpoint import FILE
from fastprobe.scan.plan import ElementFit
from fastprobe.scan.result import LinearityScan
from fastprobe.scan.rows import solve_rows

SHARED = ("model", "model_dtype", "weights", "fits", "exact", COUNTED)
"""Entries that must be the same in the configurations of merged scans. Their plans must be the same too."""


def merge_scans(folders: Sequence[str | Path], method: LeastSquares) -> LinearityScan:
    """Add the moments of several scans and score the sum.

    Sequences keep their folds. The cosine columns need the tokens themselves and stay empty.

    Args:
        folders: folders that ``fastprobe linearity`` or :meth:`LinearityScan.save` wrote.
        method: ridge penalty and rank threshold.

    Raises:
        InputError: there are fewer than two folders, one is named twice or has no moments, two hold the same batches,
            or the scans have different models or options.
    """
    if len(folders) < 2:
        raise InputError(f"merge: must be two folders or more, got {len(folders)}")
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise InputError("merge: a folder is named twice, and its tokens would count twice")
    total, config = Moments.load(Path(folders[0]) / FILE)
    reads = [config["read"]] if total.tokens and config.get("read") else []  # hashes of the batches of each scan
    texts = list(config.get("text", []))
    for folder in folders[1:]:
        moments, other = Moments.load(Path(folder) / FILE)
        for key in SHARED:
            if config.get(key) != other.get(key):
                raise InputError(
                    f"merge: {folders[0]} and {folder} differ in {key}; merge scans of one model with the same options"
                )
        if moments.tokens and other.get("read"):
            if other["read"] in reads:
                raise InputError(
                    f"merge: {folder} holds the same batches as another folder, and they would count twice"
                )
            reads.append(other["read"])
        total.merge_(moments)
        texts += other.get("text", [])
    fits = [ElementFit(Element(name, start, stop), x, y, unit) for name, start, stop, x, y, unit in config["fits"]]
    rows = solve_rows(fits, total, method)
    kept = {key: value for key, value in config.items() if key not in ("batches_done", "seconds", "sequences", "read")}
    kept |= {"text": texts, "tokens": total.tokens, "alpha": method.alpha, "merged": [str(f) for f in folders]}
    return LinearityScan(kept, rows, total)
