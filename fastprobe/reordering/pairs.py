"""Numbers of pairs of layers as a symmetric matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def pair_matrix(rows: Iterable[dict[str, Any]], depth: int, metric: str) -> np.ndarray:
    """Return one metric as a symmetric ``(depth, depth)`` matrix, ``nan`` where there is no number.

    Args:
        rows: with their two layers ``i`` and ``j``; rows whose ``i`` is ``None`` are left out.
        depth: layers of the model.
        metric: the column; every row has a number for it.
    """
    matrix = np.full((depth, depth), np.nan)
    for row in rows:
        if row["i"] is not None:
            matrix[row["i"], row["j"]] = matrix[row["j"], row["i"]] = row[metric]
    return matrix
