"""Compare the moments of one pair x -> y, the work of a scan for each token, with plain matrix products."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.models import DEVICE, TOKENS, WIDTHS, generator, residual_rows
from fastprobe import Moments
from fastprobe.ops.gram import Block, Pair, gram_
from fastprobe.regression.moment_plan import MomentPlan

Sums = tuple[Tensor, ...]
"""x^T x, x^T y, then the sums of x, y and y^2. Only the first two are compared."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model", WIDTHS)
@pytest.mark.benchmark(group="moments of one pair")
def bench_gram(duel: Callable[..., None], model: str, dtype: torch.dtype) -> None:
    """Compare the time of ``Moments.update_``, which sums in float64, with plain products.

    Ours also checks that every row is finite and sums the unit rows of y, for the anisotropy. The peer "gram_ alone"
    does neither, so its ratio is the cost of both. The error is that of the sums about zero.
    """
    width, seeded = WIDTHS[model], generator()
    x = residual_rows(TOKENS, width, seeded).to(dtype)
    y = residual_rows(TOKENS, width, seeded).to(dtype)
    fold = torch.zeros(TOKENS, dtype=torch.int64, device=DEVICE)
    plan = MomentPlan.of([("x", "y")], {"x": width, "y": width})
    origins = _moments(plan, x, y, fold).origins

    peers = {
        "gram_ alone": lambda: _gram(x, y, fold, [origins["x"], origins["y"]]),
        "torch fp32": lambda: _products(x.float(), y.float()),
        "torch fp64": lambda: _products(x.double(), y.double()),
        "oneDNN fp32": lambda: _onednn(x.float(), y.float()),
        "LeaceFitter.update": lambda: _leace(x, y),
    }
    if dtype == torch.bfloat16:
        peers["torch bf16"] = lambda: _products(x, y)
    duel(
        ours=lambda: _moments(plan, x, y, fold),
        peers=peers,
        exact=lambda: _products(x.double(), y.double()),
        error=_error,
        gate=1e-6,
        flops=TOKENS * width * (width + 1) + 2 * TOKENS * width * width,
        bytes=x.nbytes + y.nbytes + 8 * (width * (width + 1) // 2 + width * width),
    )


def _moments(plan: MomentPlan, x: Tensor, y: Tensor, fold: Tensor) -> Moments:
    moments = Moments.zero(plan, x.device)
    moments.update_({"x": x, "y": y}, fold)
    return moments


def _gram(x: Tensor, y: Tensor, fold: Tensor, origins: list[Tensor]) -> tuple[Sums, list[Tensor]]:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(1, *shape, dtype=torch.float64, device=x.device)

    d, k = x.shape[1], y.shape[1]
    grams, sums = [zeros(d, d), zeros(d, k)], [zeros(d), zeros(k)]
    blocks = [Block(x, origins[0], sums[0]), Block(y, origins[1], sums[1], zeros(k))]
    gram_(blocks, [Pair(0, 0, grams[0]), Pair(0, 1, grams[1])], fold)
    return (*grams, *sums), origins


def _products(x: Tensor, y: Tensor) -> Sums:
    return x.mT @ x, x.mT @ y, x.sum(0), y.sum(0), y.square().sum(0)


def _onednn(x: Tensor, y: Tensor) -> Sums:
    """Return products by oneDNN, the fastest float32 products of torch on AMD, from contiguous transposes."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        raise NotImplementedError("oneDNN: for CPUs only")
    a, b = x.mT.contiguous(), y.mT.contiguous()
    product = torch.ops.mkldnn._linear_pointwise
    gram, cross = product(a, a, None, "none", [], ""), product(a, b, None, "none", [], "")
    return gram, cross, a.sum(1), b.sum(1), b.square().sum(1)


def _leace(x: Tensor, y: Tensor) -> Any:
    """Return the statistics of LEACE with y as a concept of many columns, in float32."""
    fitter = import_module("concept_erasure").LeaceFitter(x.shape[1], y.shape[1], device=x.device, dtype=torch.float32)
    return fitter.update(x, y)


def _error(result: Any, exact: Sums) -> float:
    """Return the largest error of an entry over sqrt(G_ii G_jj): upper triangle of the Gram, and cross products."""
    gram, cross = _about_zero(result)
    x_norms, y_norms = exact[0].diagonal().sqrt(), exact[4].sqrt()
    within = (gram - exact[0]).triu() / x_norms[:, None] / x_norms
    between = (cross - exact[1]) / x_norms[:, None] / y_norms
    return max(float(within.abs().max()), float(between.abs().max()))


def _about_zero(result: Any) -> tuple[Tensor, Tensor]:
    """Return the Gram and the cross products about zero in float64, from sums about the origin of the contestant."""
    match result:
        case Moments():
            grams = [result.grams["x", "x"], result.grams["x", "y"], result.sum("x"), result.sum("y")]
            return _moved([g[0] for g in grams], [result.origin("x"), result.origin("y")], result.tokens)
        case (tuple() as sums, list() as origins):
            return _moved([s[0] for s in sums], origins, TOKENS)
        case (gram, cross, *_):
            return gram.double(), cross.double()
        case fitter:
            sums = [fitter.sigma_xx_, fitter.sigma_xz_, 0 * fitter.mean_x, 0 * fitter.mean_z]
            return _moved([s.double() for s in sums], [fitter.mean_x.double(), fitter.mean_z.double()], int(fitter.n))


def _moved(sums: list[Tensor], origins: list[Tensor], n: int) -> tuple[Tensor, Tensor]:
    gram, cross, x, y = sums
    a, b = origins
    ax = torch.outer(a, x)
    gram = gram + ax + ax.mT + n * torch.outer(a, a)
    return gram, cross + torch.outer(a, y) + torch.outer(x, b) + n * torch.outer(a, b)
