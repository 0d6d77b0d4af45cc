"""``score`` on the C++ kernels: ``csrc/cpu/score.cpp``."""

from __future__ import annotations

import torch
from torch import Tensor

from fastprobe.ops._dispatch import cpu_library
from fastprobe.ops.score.api import ResidualSums, RowScores, score, strides_refusal


def _refuses(
    x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, residual: ResidualSums | None = None
) -> str | None:
    elsewhere = cpu_library.not_on_a_cpu((coef, intercept, *(residual or ())))
    return strides_refusal(residual) or elsewhere or cpu_library.cpu_refuses((x, y))


@score.register("cpu", unless=_refuses)
def launch_score(
    x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, residual: ResidualSums | None = None
) -> RowScores:
    """Score with ``csrc/cpu/score.cpp``: predictions of a few rows at a time, which stay in a cache.

    Args:
        x: see :func:`fastprobe.ops.score.score`; already checked.
        coef: the same.
        intercept: the same.
        y: the same.
        residual: the same.
    """
    out = torch.empty(4, len(x), dtype=torch.float32)
    coef, intercept = coef.float().contiguous(), intercept.float().contiguous()  # alive while C++ reads them
    cpu_library.cpu_library().score(
        x=cpu_library.rows_argument(x),
        coef=coef.data_ptr(),
        intercept=intercept.data_ptr(),
        y=cpu_library.rows_argument(y),
        n=len(x),
        out=out.data_ptr(),
        residual=tuple(total.data_ptr() for total in residual) if residual else (0, 0, 0),
        threads=torch.get_num_threads(),
        isa=cpu_library.chosen_instruction_set(),
    )
    return RowScores(*out)
