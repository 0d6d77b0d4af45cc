"""A trial of a GPU kernel against torch, on the device that it is about to run on.

``auto`` does not choose a kernel whose sums differ from torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastprobe.ops.gram.api import Block, Pair

Launch = Callable[[Sequence[Block], Sequence[Pair], Tensor], object]


def error_of_a_trial(launch: Launch, device: torch.device) -> float:
    """Return the largest error of products of random bfloat16 rows, relative to the norms of their columns.

    The rows are in two folds, some are left out, and one column has an origin.

    Args:
        launch: runs the kernel on ``(blocks, pairs, fold)``.
        device: where the rows lie.
    """
    generator = torch.Generator(device).manual_seed(0)
    n, widths = 400, (140, 72)
    rows = [torch.randn(n, width, device=device, generator=generator).bfloat16() for width in widths]
    fold = torch.arange(n, device=device) % 3 - 1
    origins = [torch.zeros(width, dtype=torch.float64, device=device) for width in widths]
    rows[0][:, 3] += 40
    origins[0][3] = 40
    pairs = [
        Pair(i, j, torch.zeros(2, widths[i], widths[j], dtype=torch.float64, device=device))
        for i, j in ((0, 1), (1, 1), (0, 0))
    ]
    launch([Block(*block) for block in zip(rows, origins, strict=True)], pairs, fold)
    errors = []
    for i, j, gram in pairs:
        for f in range(2):
            x, y = (rows[k][fold == f].double() - origins[k] for k in (i, j))
            off = gram[f] - x.mT @ y
            size = torch.outer(torch.linalg.vector_norm(x, dim=0), torch.linalg.vector_norm(y, dim=0))
            errors.append(float(((off.triu() if i == j else off).abs() / size).nan_to_num(nan=1.0).max()))
    return max(errors)
