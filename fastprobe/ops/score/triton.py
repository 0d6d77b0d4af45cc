"""``score`` on the Triton kernels: ``kernels/score.py``, as an operator of torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastprobe.ops import tune
from fastprobe.ops._dispatch import triton as dispatch
from fastprobe.ops.score.api import ResidualSums, RowScores, score, strides_refusal

GATE = 1e-6
"""Largest relative error of a row's squared residual in a trial."""

RESIDUAL_ROWS = 65_536
"""Rows whose residuals are in memory at once."""


def _refuses(
    x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, residual: ResidualSums | None = None
) -> str | None:
    return strides_refusal(residual) or dispatch.refuses((x, coef, intercept, y, *(residual or ())), (x, y))


def _passed_over(
    x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, residual: ResidualSums | None = None
) -> bool:
    return dispatch.passed_over([x], score_agrees)


def score_agrees(device: torch.device) -> bool:
    """Return whether :func:`launch_score` gives torch's sums on a device."""
    generator = torch.Generator(device).manual_seed(0)
    x, y, coef = (torch.randn(*shape, device=device, generator=generator) for shape in ((300, 72), (300, 40), (72, 40)))
    intercept = torch.arange(40.0, device=device)
    off = launch_score(x, coef, intercept, y).error.double()
    exact = (y.double() - x.double() @ coef.double() - intercept.double()).square().sum(1)
    return bool((off / exact - 1).abs().max() <= GATE)


@score.register("triton", unless=_refuses, passed_over=_passed_over)
def launch_score(
    x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, *, residual: ResidualSums | None = None
) -> RowScores:
    """Score with ``kernels/score.py``, and add the sums of the residual with ``kernels/gram.py``.

    Args:
        x: see :func:`fastprobe.ops.score.score`; already checked.
        coef: the same.
        intercept: the same.
        y: the same.
        residual: the same.
    """
    return RowScores(*score_operator(x, coef, intercept, y, list(residual or ())))


@torch.library.custom_op("fastprobe::triton_score", mutates_args=("residual",))
def score_operator(x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, residual: Sequence[Tensor]) -> Tensor:
    """Run :func:`launch_score` as an operator of torch.

    Args:
        x: rows.
        coef: of the map.
        intercept: of the map.
        y: targets.
        residual: the three sums of ``ResidualSums``, or nothing.

    Returns:
        The four sums of every row, ``(4, N)`` float32.
    """
    from fastprobe.kernels import gram
    from fastprobe.kernels import score as kernels

    if not len(x):
        return x.new_empty(4, 0, dtype=torch.float32)
    device, (d, k) = x.device, coef.shape
    config = tune.choose(
        dispatch.keyed("score", x.dtype),
        (len(x), d),
        device,
        kernels.configs(dispatch.capability(device)),
        lambda config: kernels.launch_score(x, coef, intercept, y, config=config),
    )
    if not residual:
        return kernels.launch_score(x, coef, intercept, y, config=config)
    cross, sums, squares = residual
    zero_x, zero_y = (torch.zeros(width, dtype=torch.float64, device=device) for width in (d, k))
    parts = []
    for start in range(0, len(x), RESIDUAL_ROWS):
        here = slice(start, start + RESIDUAL_ROWS)
        left = torch.empty(len(x[here]), k, dtype=torch.float32, device=device)
        parts.append(kernels.launch_score(x[here], coef, intercept, y[here], left, config=config))
        gram.launch_gram(
            [(x[here], zero_x, None, None), (left, zero_y, sums[None], squares[None])],
            [(0, 1, cross[None])],
            torch.zeros(len(left), dtype=torch.int64, device=device),
            config=gram.configs(dispatch.capability(device))[0],
        )
    return torch.cat(parts, dim=1)


@score_operator.register_fake
def _(x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, residual: Sequence[Tensor]) -> Tensor:
    return x.new_empty(4, len(x), dtype=torch.float32)
