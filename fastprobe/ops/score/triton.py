"""``score`` in Triton, as an operator of torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fastprobe.ops import tune
from fastprobe.ops._dispatch.triton import capability, keyed

GATE = 1e-6
"""Largest error of a trial, of the size of its columns."""

RESIDUAL_ROWS = 65_536
"""Rows whose residuals are in memory at once."""


@functools.cache
def score_agrees(device: torch.device) -> bool:
    """Whether :func:`score` gives torch's sums on a device."""
    generator = torch.Generator(device).manual_seed(0)
    x, y, coef = (torch.randn(*shape, device=device, generator=generator) for shape in ((300, 72), (300, 40), (72, 40)))
    intercept = torch.arange(40.0, device=device)
    off = score(x, coef, intercept, y, [])[3].double()
    exact = (y.double() - x.double() @ coef.double() - intercept.double()).square().sum(1)
    return bool((off / exact - 1).abs().max() <= GATE)


@torch.library.custom_op("fastprobe::triton_score", mutates_args=("residual",))
def score(x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, residual: Sequence[Tensor]) -> Tensor:
    """``kernels/score.py`` as an operator of torch; ``residual`` is empty or the three sums of ``ResidualSums``."""
    from fastprobe.kernels import gram
    from fastprobe.kernels import score as kernels

    if not len(x):
        return x.new_empty(4, 0, dtype=torch.float32)
    device, (d, k) = x.device, coef.shape
    config = tune.choose(
        keyed("score", x.dtype),
        (len(x), d),
        device,
        kernels.configs(capability(device)),
        lambda config: kernels.score(x, coef, intercept, y, config=config),
    )
    if not residual:
        return kernels.score(x, coef, intercept, y, config=config)
    cross, sums, squares = residual
    origins = [torch.zeros(width, dtype=torch.float64, device=device) for width in (d, k)]
    parts = []
    for start in range(0, len(x), RESIDUAL_ROWS):
        here = slice(start, start + RESIDUAL_ROWS)
        left = torch.empty(len(x[here]), k, dtype=torch.float32, device=device)
        parts.append(kernels.score(x[here], coef, intercept, y[here], left, config=config))
        gram.gram_(
            [cross[None]],
            [None, sums[None]],
            [None, squares[None]],
            [x[here], left],
            [(0, 1)],
            torch.zeros(len(left), dtype=torch.int64, device=device),
            origins,
            config=gram.configs(capability(device))[0],
        )
    return torch.cat(parts, dim=1)


@score.register_fake
def _(x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, residual: Sequence[Tensor]) -> Tensor:
    return x.new_empty(4, len(x), dtype=torch.float32)
