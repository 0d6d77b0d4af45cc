"""A fit end to end, X and Y to coefficients and R²: what is gained over the least squares a user would call?"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.models import DEVICE, TOKENS, WIDTHS, generator, nearly_affine, residual_rows
from fastprobe import LinearFit

LENGTH = 128
"""Tokens of a sequence, the unit of the folds."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", WIDTHS)
@pytest.mark.benchmark(group="fit end to end")
def bench_fit(duel: Callable[..., None], model: str, dtype: torch.dtype, tokens: int | None) -> None:
    """How many times as fast are coefficients and R² of ``LinearFit`` than those of lstsq and scikit-learn?

    Ours gives rank, condition number, an error bound and the cone of y, too; with its defaults also R² over 5 folds and
    CKA (a third product, y^T y). The others give coefficients and one R² in float32, and need all rows in memory.
    The error is of R², against an SVD in float64 that leaves out the direction without variance. A solver that keeps it
    fits the rounding of the rows with it and comes out about (1 - R²) / N higher, which is inside the gate.
    """
    width, seeded = WIDTHS[model], generator()
    tokens = tokens or TOKENS * min(WIDTHS.values()) // width  # the slowest peer takes 2 s or so
    tokens = tokens // LENGTH * LENGTH
    x = residual_rows(tokens, width, seeded)
    x, y = x.to(dtype), nearly_affine(x, width, seeded).to(dtype)
    duel(
        ours=lambda: _ours(x, y, folds=0, cka=False),
        peers={
            "ours, 5 folds and CKA": lambda: _ours(x, y),
            "torch lstsq gels fp32": lambda: _lstsq(x.float(), y.float()),
            "torch lstsq gels fp64": lambda: _lstsq(x.double(), y.double()),
            "sklearn LinearRegression": lambda: _sklearn(x.float(), y.float()),
        },
        exact=lambda: exact_r2(x.double(), y.double()),
        error=lambda r2, exact: None if r2 is None else abs(r2 - exact),
        gate=1e-5,
        flops=tokens * width * (width + 1) + 2 * tokens * width * width,
        bytes=x.nbytes + y.nbytes,
    )


def _ours(x: Tensor, y: Tensor, **options: Any) -> float:
    fit = LinearFit(x.shape[1], y.shape[1], device=x.device, **options)
    fit.update(x.view(-1, LENGTH, x.shape[1]), y.view(-1, LENGTH, y.shape[1]))
    fit.solve()
    return fit.scores()["r2"]


def exact_r2(x: Tensor, y: Tensor) -> float:
    """R² by an SVD of the triangular factor of float64 rows, which any device makes in less time than theirs."""
    x, y = (x - x.mean(0)) / x.std(0), y - y.mean(0)
    r = torch.linalg.qr(torch.cat([x, y], dim=1), mode="r").R.cpu()
    d = x.shape[1]
    inputs, targets, outside = r[:d, :d], r[:d, d:], r[d:, d:]  # what no column of x reaches
    coef = torch.linalg.lstsq(inputs, targets, rcond=1e-5, driver="gelsd").solution
    left = (targets - inputs @ coef).square().sum() + outside.square().sum()
    return 1 - float(left / y.square().sum())


def _lstsq(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    coef = torch.linalg.lstsq(x, y, driver="gels").solution
    return 1 - float((y - x @ coef).square().sum() / y.square().sum())


def _sklearn(x: Tensor, y: Tensor) -> float:
    if DEVICE.type != "cpu":
        raise NotImplementedError("scikit-learn: for CPUs only")
    inputs, targets = x.numpy(), y.numpy()
    fit = import_module("sklearn.linear_model").LinearRegression().fit(inputs, targets)
    r2_score = import_module("sklearn.metrics").r2_score
    return float(r2_score(targets, fit.predict(inputs), multioutput="variance_weighted"))
