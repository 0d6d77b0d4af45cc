"""A kernel tried against torch on the device that it is about to run on: `auto` leaves alone what differs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastprobe.ops.gram.call import GramCall


def error_of_a_trial(launch: Callable[[GramCall], None], device: torch.device) -> float:
    """The largest error of products of random bfloat16 rows in two folds, over the size of their columns.

    Args:
        launch: runs the kernel.
        device: where.
    """
    generator = torch.Generator(device).manual_seed(0)
    n, widths = 400, (140, 72)
    rows = [torch.randn(n, width, device=device, generator=generator).bfloat16() for width in widths]
    fold = torch.arange(n, device=device) % 3 - 1
    pairs = [(0, 1), (1, 1), (0, 0)]
    grams = [torch.zeros(2, widths[i], widths[j], dtype=torch.float64, device=device) for i, j in pairs]
    origins = [torch.zeros(width, dtype=torch.float64, device=device) for width in widths]
    rows[0][:, 3] += 40
    origins[0][3] = 40
    launch(GramCall(grams, [None, None], [None, None], rows, pairs, fold, origins))
    errors = []
    for gram, (i, j) in zip(grams, pairs, strict=True):
        for f in range(2):
            x, y = (rows[k][fold == f].double() - origins[k] for k in (i, j))
            off = gram[f] - x.mT @ y
            size = torch.outer(torch.linalg.vector_norm(x, dim=0), torch.linalg.vector_norm(y, dim=0))
            errors.append(float(((off.triu() if i == j else off).abs() / size).nan_to_num(nan=1.0).max()))
    return max(errors)
