"""An encoder's operations and its forward pass on a GPU, and the score of a map, against torch and Hugging Face."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.gram import off, rows_of
from benchmarks.gpu.rows import DEVICE, ON_GPU, Rows, Run, race
from benchmarks.gpu.scan import batches_of, bert
from benchmarks.models import generator
from fastprobe.models.resolve import resolve
from fastprobe.models.unpadded.encoder import Encoder
from fastprobe.models.unpadded.tokens import UnpaddedTokens
from fastprobe.ops.encoder.add_norm import add_norm
from fastprobe.ops.encoder.bias_gelu import bias_gelu_
from fastprobe.ops.encoder.varlen_attention import varlen_attention
from fastprobe.ops.score import score
from fastprobe.ops.unit_sum import unit_sum
from fastprobe.ops.vocabulary_scores import vocabulary_scores

TOKENS, WIDTH, HEADS = (65_536, 768, 12) if ON_GPU else (64, 32, 4)
VOCABULARY, MASKED = (30_522, 8192) if ON_GPU else (150, 40)


def _normal(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(sum(shape)), device=DEVICE).to(dtype)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function) if ON_GPU else function


def _relative(exact: Callable[[], Tensor]) -> Callable[[Tensor], float]:
    """Return the largest error of a result relative to the largest exact number."""

    def error(got: Tensor) -> float:
        right = exact()
        return float((got.double() - right).abs().max() / right.abs().max())

    return error


def _without(contestants: dict[str, Run], operation: str) -> dict[str, Run]:
    """Return the contestants without ours where its smoke test failed."""
    return {name: run for name, run in contestants.items() if not (name == "ours" and operation in off())}


def unit_rows(rows: Rows) -> None:
    """Compare the sum of unit rows, with its check of finite numbers, with torch."""
    x = _normal(torch.bfloat16, TOKENS, WIDTH)
    valid = torch.ones(TOKENS, dtype=torch.bool, device=DEVICE)
    contestants = {
        "ours": lambda: unit_sum.on("triton")(x, valid).total,
        "torch": lambda: unit_sum.on("torch")(x, valid).total,
    }
    wide = x.double()
    exact = (wide / torch.linalg.vector_norm(wide, dim=1, keepdim=True)).sum(0)
    race(
        rows, "sum of unit rows", f"{TOKENS} x {WIDTH} bfloat16", _without(contestants, "unit_sum"),
        error=lambda got: float((got - exact).abs().max()) / TOKENS**0.5, gate=1e-5, bytes=x.nbytes, seconds=1.0,
    )  # fmt: skip


def norm(rows: Rows) -> None:
    """Compare the fused sum and LayerNorm with torch, torch.compile and the memory bandwidth."""
    for dtype in (torch.bfloat16, torch.float32):
        x, residual, (weight, bias) = (_normal(dtype, n, WIDTH) for n in (TOKENS, TOKENS + 1, 2))
        residual = residual[1:]

        def by_torch(x: Tensor = x, r: Tensor = residual, w: Tensor = weight, b: Tensor = bias) -> Tensor:
            return F.layer_norm(x + r, (WIDTH,), w, b, 1e-12)

        def ours(x: Tensor = x, r: Tensor = residual, w: Tensor = weight, b: Tensor = bias) -> Tensor:
            return add_norm.on("triton")(x, r, w, b, 1e-12)

        wide = [part.double() for part in (x, residual, weight, bias)]
        race(
            rows, "sum and LayerNorm", f"{TOKENS} x {WIDTH} {dtype}",
            _without({"ours": ours, "torch": by_torch, "torch.compile": _compiled(by_torch)}, "add_norm"),
            error=_relative(lambda w=wide: F.layer_norm(w[0] + w[1], (WIDTH,), w[2], w[3], 1e-12)),
            gate=4 * torch.finfo(dtype).eps, bytes=3 * x.nbytes, seconds=1.0,
        )  # fmt: skip


def gelu(rows: Rows) -> None:
    """Compare fused bias and GELU with torch, and with a product whose epilogue is a bias and a tanh-GELU."""
    dtype = torch.bfloat16
    x, (bias,) = _normal(dtype, TOKENS, 4 * WIDTH), _normal(dtype, 1, 4 * WIDTH)
    scratch = torch.empty_like(x)
    contestants = {
        "ours": lambda: (bias_gelu_.on("triton")(scratch.copy_(x), bias), scratch)[1],
        "torch": lambda: F.gelu(scratch.copy_(x).add_(bias)),
    }
    race(
        rows, "bias and erf-GELU", f"{TOKENS} x {4 * WIDTH} {dtype}", _without(contestants, "bias_gelu"),
        error=_relative(lambda: F.gelu(x.double() + bias.double())), gate=4 * torch.finfo(dtype).eps,
        bytes=4 * x.nbytes, seconds=1.0,
    )  # fmt: skip
    h, weight = _normal(dtype, TOKENS, WIDTH), _normal(dtype, 4 * WIDTH, WIDTH) / WIDTH**0.5
    contestants = {
        "product with bias, then ours": lambda: _then_gelu(F.linear(h, weight), bias),
        "product with bias, then torch": lambda: F.gelu(F.linear(h, weight, bias)),
        "cuBLASLt epilogue, tanh-GELU": lambda: torch._addmm_activation(bias, h, weight.mT, use_gelu=True),
        "product with bias alone": lambda: F.linear(h, weight, bias),
    }
    race(rows, "product, bias and GELU", f"{TOKENS} x {WIDTH} x {4 * WIDTH}", contestants, seconds=1.0)


def _then_gelu(x: Tensor, bias: Tensor) -> Tensor:
    bias_gelu_.on("triton")(x, bias)
    return x


def attention(rows: Rows) -> None:
    """Compare one launch for sequences of all lengths with one call for each length."""
    dtype = torch.bfloat16
    runs = tuple((TOKENS // 2048 or 1, length) for length in range(8, 129, 8))[: None if ON_GPU else 3]
    q, k, v = _normal(dtype, sum(count * length for count, length in runs), 3 * WIDTH).split(WIDTH, 1)
    contestants: dict[str, Run] = {"a call a length": lambda: varlen_attention.on("torch")(q, k, v, runs, HEADS)}
    if ON_GPU:
        contestants["one launch"] = lambda: varlen_attention.on("cuda")(q, k, v, runs, HEADS)
    race(
        rows, "attention without padding", f"{len(q)} x {WIDTH} {dtype}", contestants,
        error=_relative(lambda: varlen_attention.on("torch")(q.double(), k.double(), v.double(), runs, HEADS)),
        gate=2e-2, flops=4.0 * WIDTH * sum(count * length * length for count, length in runs), seconds=1.0,
    )  # fmt: skip


def vocabulary(rows: Rows) -> None:
    """Goal G22: the loss of masked tokens without stored logits, against torch and torch.compile."""
    dtype = torch.bfloat16
    x, weight = _normal(dtype, MASKED, WIDTH), _normal(dtype, VOCABULARY, WIDTH) / WIDTH**0.5
    bias, target = _normal(dtype, 1, VOCABULARY)[0], torch.arange(MASKED, device=DEVICE) % VOCABULARY

    def ours() -> Tensor:
        found = vocabulary_scores.on("triton")(x, weight, bias, target)
        return found.log_sum_exp - found.at_target

    def by_torch() -> Tensor:
        return F.cross_entropy(F.linear(x, weight, bias).float(), target, reduction="none")

    race(
        rows, "masked-LM loss", f"{MASKED} x {VOCABULARY}",
        _without({"ours": ours, "torch": by_torch, "torch.compile": _compiled(by_torch)}, "vocabulary"),
        error=_relative(
            lambda: F.cross_entropy(x.double() @ weight.double().mT + bias.double(), target, reduction="none")
        ),
        gate=1e-5, flops=2.0 * MASKED * VOCABULARY * WIDTH, seconds=1.5,
    )  # fmt: skip


def score_of_a_map(rows: Rows) -> None:
    """Goals G10 and G11: the four sums of each row of a linear map, against torch and torch.compile."""
    for dtype in (torch.bfloat16, torch.float32):
        x, y = rows_of(2, WIDTH, dtype, 2**18 if ON_GPU else 128)
        coef = torch.randn(WIDTH, WIDTH, generator=generator(), device=DEVICE) / WIDTH**0.5
        intercept = torch.randn(WIDTH, generator=generator(), device=DEVICE)

        def expression(x: Tensor, y: Tensor, coef: Tensor, intercept: Tensor) -> Tensor:
            p, y = (x @ coef.to(x.dtype)).float() + intercept, y.float()
            return torch.stack([(p * y).sum(1), p.square().sum(1), y.square().sum(1), (y - p).square().sum(1)])

        compiled = _compiled(expression)
        torch.backends.cuda.matmul.allow_tf32 = False
        arguments = x, y, coef, intercept
        contestants = {
            "ours": lambda a=arguments: score.on("triton")(a[0], a[2], a[3], a[1]).error,
            "torch": lambda a=arguments: expression(*a)[3],
            "torch.compile": lambda a=arguments, run=compiled: run(*a)[3],
            "torch fp32": lambda a=arguments: expression(a[0].float(), *a[1:])[3],
        }
        exact = (y.double() - x.double() @ coef.double() - intercept.double()).square().sum(1)
        race(
            rows, "score of a map", f"{len(x)} x {WIDTH} {dtype}", _without(contestants, "score"),
            error=lambda got, exact=exact: float((got / exact - 1).abs().max()), gate=1e-5,
            flops=2 * len(x) * WIDTH * WIDTH, bytes=x.nbytes + y.nbytes + 16 * len(x), seconds=1.5,
        )  # fmt: skip


def forward(rows: Rows) -> None:
    """Goals G12 to G14: final hidden states of BERT-base in bfloat16, against Hugging Face's SDPA and torch.compile."""
    model = bert()
    compiled = _compiled(model)
    encoder = Encoder(model, resolve(model))
    for kind in ("natural", "full"):
        (batch,) = batches_of(kind, 1, 256 if ON_GPU else 12, size=256 if ON_GPU else 4)
        kept = batch["attention_mask"].bool()

        @torch.no_grad()
        def ours(batch: dict[str, Tensor] = batch, kept: Tensor = kept) -> Tensor:
            unpadded = UnpaddedTokens.of(kept)
            state = encoder.stem(batch, unpadded)
            for layer in encoder.layers:
                state = layer(state, unpadded)
            return unpadded.pad(state)[kept]

        @torch.no_grad()
        def theirs(model: Any = model, batch: dict[str, Tensor] = batch, kept: Tensor = kept) -> Tensor:
            return model(**batch)[0][kept]

        contestants = {
            "ours": ours,
            "HF": theirs,
            "torch.compile of HF": lambda theirs=theirs: theirs(compiled),
        }
        race(
            rows, "forward of BERT-base", f"{kind}, {int(kept.sum())} tokens", contestants,
            error=_relative(lambda theirs=theirs: theirs().double()), gate=0.05, seconds=3.0,
        )  # fmt: skip
