"""Rows that come batch by batch: what do the sums of a fit take, against a running covariance in float32?"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor

from benchmarks.models import DEVICE, generator, nearly_affine, residual_rows
from fastprobe import LinearFit

TOKENS, BATCH, WIDTH = (2**20, 2**15, 768) if DEVICE.type == "cuda" else (2**14, 2**12, 384)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.benchmark(group="streaming update")
def bench_update(duel: Callable[..., None], dtype: torch.dtype) -> None:
    """G7: ``LinearFit.update`` against what ``concept_erasure.LeaceFitter.update`` does, spelled out and itself.

    Both sum up x^T x and x^T y about the means. Ours also checks that all is finite and sums unit rows for the cone.
    The error is of the sums, over the size of their columns about their means.
    """
    seeded = generator()
    x = residual_rows(TOKENS, WIDTH, seeded)
    y = torch.cat([nearly_affine(part, WIDTH, generator(1)) for part in x.split(BATCH)]).to(dtype)
    x = x.to(dtype)
    duel(
        ours=lambda: _ours(x, y),
        peers={
            "LeaceFitter.update, spelled out": lambda: _running_covariance(x, y),
            "LeaceFitter.update": lambda: _leace(x, y),
        },
        exact=lambda: _exact(x, y),
        error=_error,
        gate=1e-6,
        flops=TOKENS * WIDTH * (WIDTH + 1) + 2 * TOKENS * WIDTH * WIDTH,
        bytes=x.nbytes + y.nbytes,
    )


def _ours(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    fit = LinearFit(WIDTH, WIDTH, folds=0, cka=False, device=x.device)
    for rows, targets in zip(x.split(BATCH), y.split(BATCH), strict=True):
        fit.update(rows, targets)
    moments = fit.moments
    x_sum, y_sum = moments.sum("x")[0], moments.sum("y")[0]
    gram, cross = moments.cross("x", "x")[0], moments.cross("x", "y")[0]
    return gram - torch.outer(x_sum, x_sum) / len(x), cross - torch.outer(x_sum, y_sum) / len(x)


def _running_covariance(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Welford's update of means and products, in float32, in the order in which ``LeaceFitter`` does it."""
    means = [torch.zeros(WIDTH, device=x.device) for _ in range(2)]
    gram, cross = (torch.zeros(WIDTH, WIDTH, device=x.device) for _ in range(2))
    torch.backends.cuda.matmul.allow_tf32 = False
    seen = 0
    for both in zip(x.split(BATCH), y.split(BATCH), strict=True):
        seen += len(both[0])
        before, after = [], []
        for rows, mean in zip(both, means, strict=True):
            wide = rows.float()
            before.append(wide - mean)
            mean += before[-1].sum(0) / seen
            after.append(wide - mean)
        gram.addmm_(before[0].mT, after[0])
        cross.addmm_(before[0].mT, after[1])
    return gram, cross


def _leace(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    fitter = import_module("concept_erasure").LeaceFitter(WIDTH, WIDTH, device=x.device, dtype=torch.float32)
    for rows, targets in zip(x.split(BATCH), y.split(BATCH), strict=True):
        fitter.update(rows, targets)
    return fitter.sigma_xx_, fitter.sigma_xz_


def _exact(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Products about the means and the norms of the columns, in float64, a slice of the rows at a time."""
    x_mean, y_mean = (sum(part.double().sum(0) for part in rows.split(BATCH)) / TOKENS for rows in (x, y))
    gram, cross = (torch.zeros(WIDTH, WIDTH, dtype=torch.float64, device=x.device) for _ in range(2))
    y_squares = torch.zeros(WIDTH, dtype=torch.float64, device=x.device)
    for rows, targets in zip(x.split(BATCH), y.split(BATCH), strict=True):
        a, b = rows.double() - x_mean, targets.double() - y_mean
        gram, cross, y_squares = gram + a.mT @ a, cross + a.mT @ b, y_squares + b.square().sum(0)
    x_size, y_size = gram.diagonal().sqrt(), y_squares.sqrt()
    return torch.cat([gram, cross], 1), torch.outer(x_size, torch.cat([x_size, y_size]))


def _error(got: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    return float(((torch.cat(got, 1).double() - exact[0]).abs() / exact[1]).max())
