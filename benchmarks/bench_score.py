"""Compare the scores of a fitted map for each row with the plain torch expression."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.models import TOKENS, WIDTHS, generator, residual_rows
from fastprobe.ops.products import matmul
from fastprobe.ops.score import score


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", WIDTHS)
@pytest.mark.benchmark(group="score of a map, row by row")
def bench_score(duel: Callable[..., None], model: str, dtype: torch.dtype) -> None:
    """Compare the time of four sums of each row without writing the prediction to memory.

    All contestants give sum p y, sum p^2, sum y^2 and sum (y - p)^2 of every row. "torch" is the plain expression.
    "torch, product in oneDNN" uses the library that is faster on AMD. "torch backend" is our definition, which works on
    512 rows at a time. The error is the relative error of sum (y - p)^2.
    """
    width, seeded = WIDTHS[model], generator()
    x = residual_rows(TOKENS, width, seeded).to(dtype)
    y = residual_rows(TOKENS, width, seeded).to(dtype)
    coef = torch.randn(width, width, generator=seeded, device=x.device) / width**0.5
    intercept = torch.randn(width, generator=seeded, device=x.device)
    duel(
        ours=lambda: score(x, coef, intercept, y).error,
        peers={
            "torch": lambda: _expression(x.float() @ coef + intercept, y.float()),
            "torch, product in oneDNN": lambda: _expression(matmul(x.float(), coef) + intercept, y.float()),
            "torch backend": lambda: score.on("torch")(x, coef, intercept, y).error,
        },
        exact=lambda: (y.double() - x.double() @ coef.double() - intercept.double()).square().sum(1),
        error=lambda got, exact: float((got / exact - 1).abs().max()),
        gate=1e-5,
        flops=2 * TOKENS * width * width,
        bytes=x.nbytes + y.nbytes + 16 * TOKENS,
    )


def _expression(p: Tensor, y: Tensor) -> Tensor:
    (p * y).sum(1)
    p.square().sum(1)
    y.square().sum(1)
    return (y - p).square().sum(1)
