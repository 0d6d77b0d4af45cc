"""Compare an encoder's forward pass and its operations on a GPU with torch and Hugging Face (``make gpu``).

On a machine without a GPU, everything runs at tiny sizes, and kernels run in Triton's interpreter
(``TRITON_INTERPRET=1``). This finds mistakes before time on a GPU is spent. The timings then mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from benchmarks.models import DEVICE, generator
from fastprobe.models.resolve import resolve
from fastprobe.models.unpadded.encoder import Encoder
from fastprobe.models.unpadded.tokens import UnpaddedTokens
from fastprobe.ops.encoder.add_norm import add_norm
from fastprobe.ops.encoder.bias_gelu import bias_gelu_
from fastprobe.ops.encoder.varlen_attention import varlen_attention
from fastprobe.ops.vocabulary_scores import vocabulary_scores

pytest.importorskip("triton")
pytestmark = pytest.mark.gpu

ON_GPU = DEVICE.type == "cuda"
TOKENS, WIDTH, HEADS = (65_536, 768, 12) if ON_GPU else (64, 32, 4)
VOCABULARY = 30_522 if ON_GPU else 150
MASKED = 8192 if ON_GPU else 40
DTYPES = [torch.bfloat16, torch.float32]


def _normal(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(sum(shape)), device=DEVICE).to(dtype)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function) if ON_GPU else function


def _largest(out: Tensor, exact: Tensor) -> float:
    return float((out.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.benchmark(group="sum and LayerNorm on a GPU")
def bench_add_norm_gpu(duel: Callable[..., None], dtype: torch.dtype) -> None:
    """Compare the fused sum and LayerNorm with torch, torch.compile and the memory bandwidth."""
    x, residual, (weight, bias) = (_normal(dtype, n, WIDTH) for n in (TOKENS, TOKENS + 1, 2))
    residual = residual[1:]

    def by_torch() -> Tensor:
        return F.layer_norm(x + residual, (WIDTH,), weight, bias, 1e-12)

    duel(
        ours=lambda: add_norm.on("triton")(x, residual, weight, bias, 1e-12),
        peers={"torch": by_torch, "torch.compile": _compiled(by_torch)},
        exact=lambda: F.layer_norm(x.double() + residual.double(), (WIDTH,), weight.double(), bias.double(), 1e-12),
        error=_largest,
        gate=4 * torch.finfo(dtype).eps,
        bytes=3 * x.nbytes,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.benchmark(group="bias and erf-GELU on a GPU")
def bench_bias_gelu_gpu(duel: Callable[..., None], dtype: torch.dtype) -> None:
    """Compare fused bias and GELU with torch, with and without the bias already added. All copy the input."""
    x, (bias,) = _normal(dtype, TOKENS, 4 * WIDTH), _normal(dtype, 1, 4 * WIDTH)
    scratch, biased = torch.empty_like(x), x + bias

    def ours() -> Tensor:
        bias_gelu_.on("triton")(scratch.copy_(x), bias)
        return scratch

    duel(
        ours=ours,
        peers={
            "torch, bias added before": lambda: F.gelu(scratch.copy_(biased)),
            "torch": lambda: F.gelu(scratch.copy_(x).add_(bias)),
        },
        exact=lambda: F.gelu(x.double() + bias.double()),
        error=_largest,
        gate=4 * torch.finfo(dtype).eps,
        bytes=4 * x.nbytes,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.benchmark(group="attention without padding on a GPU")
def bench_attention_gpu(duel: Callable[..., None], dtype: torch.dtype) -> None:
    """Compare one launch for sequences of all lengths with one call for each length."""
    runs = tuple((TOKENS // 2048 or 1, length) for length in range(8, 129, 8))[: None if ON_GPU else 3]
    tokens = sum(count * length for count, length in runs)
    q, k, v = _normal(dtype, tokens, 3 * WIDTH).split(WIDTH, 1)
    backend = "cuda" if ON_GPU else "torch"
    duel(
        ours=lambda: varlen_attention.on(backend)(q, k, v, runs, HEADS),
        peers={"torch, a call a length": lambda: varlen_attention.on("torch")(q, k, v, runs, HEADS)},
        exact=lambda: varlen_attention.on("torch")(q.double(), k.double(), v.double(), runs, HEADS),
        error=_largest,
        gate=1e-5 if dtype == torch.float32 else 2e-2,
        flops=4.0 * WIDTH * sum(count * length * length for count, length in runs),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.benchmark(group="masked-LM loss on a GPU")
def bench_vocabulary_scores_gpu(duel: Callable[..., None], dtype: torch.dtype) -> None:
    """Goal G22: compare the loss of masked tokens without stored logits with torch and torch.compile."""
    x, weight = _normal(dtype, MASKED, WIDTH), _normal(dtype, VOCABULARY, WIDTH) / WIDTH**0.5
    bias, target = _normal(dtype, 1, VOCABULARY)[0], torch.arange(MASKED, device=DEVICE) % VOCABULARY

    def ours() -> Tensor:
        found = vocabulary_scores.on("triton")(x, weight, bias, target)
        return found.log_sum_exp - found.at_target

    def by_torch() -> Tensor:
        return F.cross_entropy(F.linear(x, weight, bias).float(), target, reduction="none")

    duel(
        ours=ours,
        peers={"torch": by_torch, "torch.compile": _compiled(by_torch)},
        exact=lambda: F.cross_entropy(x.double() @ weight.double().mT + bias.double(), target, reduction="none"),
        error=_largest,
        gate=1e-5,
        flops=2.0 * MASKED * VOCABULARY * WIDTH,
    )


@pytest.mark.parametrize("lengths", ["full", "natural"])
@pytest.mark.benchmark(group="forward of a BERT-base shape on a GPU")
def bench_forward_gpu(duel: Callable[..., None], lengths: str) -> None:
    """Goals G12 to G14: compare final hidden states in bfloat16 with Hugging Face's SDPA. Natural lengths fill 0.55."""
    torch.manual_seed(0)
    shape = (
        {}
        if ON_GPU
        else {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 64}
    )
    model = BertModel(BertConfig(**shape)).eval().to(DEVICE, torch.bfloat16)
    size, longest = (256, 256) if ON_GPU else (4, 16)
    ids = torch.randint(1000, (size, longest), generator=generator(), device=DEVICE)
    short = torch.randint(longest // 10, longest + 1, (size, 1), generator=generator(), device=DEVICE)
    mask = (torch.arange(longest, device=DEVICE) < (longest if lengths == "full" else short)).expand(ids.shape).long()
    encoder = Encoder(model, resolve(model))
    batch = {"input_ids": ids, "attention_mask": mask}

    @torch.no_grad()
    def ours() -> Tensor:
        unpadded = UnpaddedTokens.of(mask.bool())
        state = encoder.stem(batch, unpadded)
        for layer in encoder.layers:
            state = layer(state, unpadded)
        return unpadded.pad(state)[mask.bool()]

    @torch.no_grad()
    def theirs(model: Callable[..., Any] = model) -> Tensor:
        found: Tensor = model(**batch)[0][mask.bool()]
        return found

    compiled = _compiled(model)
    duel(
        ours=ours,
        peers={"HF": theirs, "torch.compile of HF": lambda: theirs(compiled)},
        exact=lambda: theirs().double(),
        error=_largest,
        gate=0.05,
    )
