"""Compare the operations of an encoder layer on a CPU with torch: both sublayers and their parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.models import DEVICE, generator
from fastprobe.ops.encoder.add_norm import add_norm
from fastprobe.ops.encoder.attention_sublayer import attention_sublayer
from fastprobe.ops.encoder.bias_gelu import bias_gelu_
from fastprobe.ops.encoder.ffn_sublayer import ffn_sublayer
from fastprobe.ops.encoder.layers import Norm
from fastprobe.ops.encoder.varlen_attention import varlen_attention

TOKENS, WIDTH, HEADS = 2048 if DEVICE.type == "cpu" else 65_536, 384, 12
RUNS = {
    "paragraphs": ((3, 12), (4, 20), (1, 33), (9, 40), (7, 50), (3, 66), (2, 128)),
    "128 tokens": ((TOKENS // 128, 128),),
}


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(), device=DEVICE)


def _largest(out: Tensor, exact: Tensor) -> float:
    return float((out - exact).abs().max())


def _layers(*widths: tuple[int, int]) -> list[tuple[Tensor, Tensor | None]]:
    numbers = generator(1)  # another seed than that of the rows

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=numbers, device=DEVICE)

    return [(normal(e, d) / d**0.5, normal(e)) for d, e in widths]


def _wide(layers: Iterable[tuple[Tensor, Tensor | None]]) -> list[tuple[Tensor, Tensor | None]]:
    return [(weight.double(), bias.double()) for weight, bias in layers if bias is not None]


@pytest.mark.benchmark(group="FFN half of a layer")
def bench_ffn_sublayer(duel: Callable[..., None]) -> None:
    """Compare the FFN sublayer with torch: two matrix products in its faster library, ``gelu`` and ``layer_norm``."""
    x, norm = _normal(2 * TOKENS, WIDTH), Norm(_normal(WIDTH), _normal(WIDTH), 1e-12)
    layers, nothing = _layers((WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)), [False, False]
    wide_norm = Norm(norm.weight.double(), norm.bias.double(), norm.eps)
    duel(
        ours=lambda: ffn_sublayer(x, layers, x, norm, nothing).state,
        peers={"torch": lambda: ffn_sublayer.on("torch")(x, layers, x, norm, nothing).state},
        exact=lambda: ffn_sublayer.on("torch")(x.double(), _wide(layers), x.double(), wide_norm, nothing).state,
        error=_largest,
        gate=3e-5,
        flops=4.0 * len(x) * WIDTH * 4 * WIDTH,
    )


@pytest.mark.parametrize("lengths", RUNS)
@pytest.mark.benchmark(group="attention half of a layer")
def bench_attention_sublayer(duel: Callable[..., None], lengths: str) -> None:
    """Compare the attention sublayer with torch: four products, ``scaled_dot_product_attention``, ``layer_norm``."""
    runs = [(2 * count, length) for count, length in RUNS[lengths]]
    x, norm = _normal(sum(n * length for n, length in runs), WIDTH), Norm(_normal(WIDTH), _normal(WIDTH), 1e-12)
    layers, nothing = tuple(_layers(*[(WIDTH, WIDTH)] * 4)), (False, False)
    wide_norm = Norm(norm.weight.double(), norm.bias.double(), norm.eps)

    def on(backend: str, *args: Any) -> Tensor:
        out: Tensor = attention_sublayer.on(backend)(*args, nothing).state
        return out

    duel(
        ours=lambda: on("auto", x, layers, runs, HEADS, norm),
        peers={"torch": lambda: on("torch", x, layers, runs, HEADS, norm)},
        exact=lambda: on("torch", x.double(), _wide(layers), runs, HEADS, wide_norm),
        error=_largest,
        gate=3e-5,
        flops=8.0 * len(x) * WIDTH**2 + 4.0 * WIDTH * sum(count * length**2 for count, length in runs),
    )


@pytest.mark.parametrize("lengths", RUNS)
@pytest.mark.benchmark(group="attention without padding")
def bench_varlen_attention(duel: Callable[..., None], lengths: str) -> None:
    """Compare attention without padding with one ``scaled_dot_product_attention`` for each sequence length."""
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
    """Compare the fused sum and LayerNorm with a sum and ``layer_norm``."""
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
    """Compare the fused bias and GELU with a sum and ``gelu``. All copy the input, which they overwrite."""
    x, bias = _normal(TOKENS, 4 * WIDTH), _normal(4 * WIDTH)
    scratch = torch.empty_like(x)

    def on(backend: str) -> Tensor:
        bias_gelu_.on(backend)(scratch.copy_(x), bias)
        return scratch

    duel(
        ours=lambda: on("auto"),
        peers={"torch": lambda: on("torch")},
        exact=lambda: torch.nn.functional.gelu((x + bias).double()),
        error=_largest,
        gate=1e-5,
        bytes=4 * x.nbytes,
    )
