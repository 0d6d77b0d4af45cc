"""The operations of an encoder's layer that are no products: what does each gain over torch?"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.models import DEVICE, generator
from fastprobe.ops import add_norm, bias_gelu_, varlen_attention

TOKENS, WIDTH, HEADS = 2048 if DEVICE.type == "cpu" else 65_536, 384, 12
RUNS = {
    "paragraphs": ((3, 12), (4, 20), (1, 33), (9, 40), (7, 50), (3, 66), (2, 128)),
    "128 tokens": ((TOKENS // 128, 128),),
}


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(), device=DEVICE)


def _largest(out: Tensor, exact: Tensor) -> float:
    return float((out - exact).abs().max())


@pytest.mark.parametrize("lengths", RUNS)
@pytest.mark.benchmark(group="attention without padding")
def bench_varlen_attention(duel: Callable[..., None], lengths: str) -> None:
    """Against ``scaled_dot_product_attention``, once for all sequences of one length: no padding, no mask."""
    runs = RUNS[lengths]
    tokens = sum(count * length for count, length in runs)
    q, k, v = (part.contiguous() for part in _normal(tokens, 3 * WIDTH).split(WIDTH, 1))
    duel(
        ours=lambda: varlen_attention(q, k, v, runs, HEADS),
        peers={"torch": lambda: varlen_attention.on("torch")(q, k, v, runs, HEADS)},
        exact=lambda: varlen_attention.on("torch")(q.double(), k.double(), v.double(), runs, HEADS),
        error=_largest,
        gate=1e-5,
        flops=4.0 * WIDTH * sum(count * length * length for count, length in runs),
    )


@pytest.mark.benchmark(group="sum and LayerNorm")
def bench_add_norm(duel: Callable[..., None]) -> None:
    """Against a sum and ``layer_norm``."""
    x, residual, weight, bias = _normal(TOKENS, WIDTH), _normal(TOKENS, WIDTH), _normal(WIDTH), _normal(WIDTH)
    wide = [tensor.double() for tensor in (x, residual, weight, bias)]
    duel(
        ours=lambda: add_norm(x, residual, weight, bias, 1e-12),
        peers={"torch": lambda: add_norm.on("torch")(x, residual, weight, bias, 1e-12)},
        exact=lambda: add_norm.on("torch")(*wide, 1e-12),
        error=_largest,
        gate=1e-5,
        bytes=3 * x.nbytes,
    )


@pytest.mark.benchmark(group="bias and erf-GELU")
def bench_bias_gelu(duel: Callable[..., None]) -> None:
    """Against a sum and ``gelu``; everyone copies the same numbers first, for they are replaced."""
    x, bias = _normal(TOKENS, 4 * WIDTH), _normal(4 * WIDTH)
    scratch = torch.empty_like(x)

    def on(backend: str) -> Tensor:
        bias_gelu_(scratch.copy_(x), bias, backend=backend)
        return scratch

    duel(
        ours=lambda: on("auto"),
        peers={"torch": lambda: on("torch")},
        exact=lambda: torch.nn.functional.gelu((x + bias).double()),
        error=_largest,
        gate=1e-5,
        bytes=4 * x.nbytes,
    )
