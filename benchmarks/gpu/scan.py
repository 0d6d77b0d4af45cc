"""Moments, scans, fits and sweeps of orders on a GPU, against Hugging Face's forward pass and torch's least squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

import fastprobe as fp
from benchmarks.gpu.rows import DEVICE, ON_GPU, Rows, race
from benchmarks.models import Batch, generator, nearly_affine, residual_rows
from fastprobe import LinearFit, orders
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments

ELEMENTS = ["layer", "attention", "ffn", "attn", "mlp"]
"""Five elements of each layer: 60 pairs of BERT-base."""


def bert() -> nn.Module:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertModel(BertConfig(**({} if ON_GPU else small))).eval().to(DEVICE, torch.bfloat16)


def batches_of(kind: str, tokens: int, longest: int, vocabulary: int = 30_000, size: int = 256) -> list[Batch]:
    """Return batches of random ids. Natural lengths fill 0.55 of a batch, in the mean."""
    batches = []
    while tokens > 0:
        ids = torch.randint(1000, vocabulary, (size, longest), generator=generator(tokens), device=DEVICE)
        short = torch.randint(longest // 10, longest + 1, (size, 1), generator=generator(tokens), device=DEVICE)
        mask = (torch.arange(longest, device=DEVICE) < (longest if kind == "full" else short)).expand(ids.shape).long()
        batches.append({"input_ids": ids * mask, "attention_mask": mask})
        tokens -= int(mask.sum())
    return batches


def update(rows: Rows) -> None:
    """Time ``Moments.update_`` of a layer's plan with five folds, sums and origins, and its waits for the device."""
    n, d = (32_768, 768) if ON_GPU else (256, 16)
    seeded = generator()
    blocks = {name: residual_rows(n, d, seeded).bfloat16() for name in ("h", "a", "o", "m", "f")}
    fits = [("h", "f"), ("h", "a"), ("h", "o"), ("a", "f"), ("a", "m")]
    fold = torch.arange(n, device=DEVICE) * 5 // n
    plan = MomentPlan.of(fits, dict.fromkeys(blocks, d), folds=5, cka=fits)

    def contestant(backend: str) -> Callable[[], Any]:
        moments = Moments.zero(plan, DEVICE)
        return lambda: moments.update_(blocks, fold, backend=backend)

    race(
        rows,
        "update of a layer's moments",
        f"{n} x {d}, 5 folds",
        {name: contestant(name) for name in ("auto", "torch")},
    )
    if ON_GPU:
        torch.cuda.set_sync_debug_mode("warn")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            contestant("auto")()
        torch.cuda.set_sync_debug_mode("default")
        for event in sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)[:12]:
            rows.write(
                "kernels of an update", event.key[:80], "auto", ms=event.self_device_time_total / 1e3, calls=event.count
            )


def _scan(rows: Rows, task: str, case: str, model: nn.Module, batches: list[Batch], **options: Any) -> None:
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)

    @torch.no_grad()
    def forward() -> None:
        for batch in batches:
            model(**batch)

    def scan() -> Any:
        return fp.linearity(model, batches, progress=False, **options)

    race(rows, task, f"{case}, {tokens} tokens", {"HF forward": forward, "scan": scan}, seconds=6.0)
    found = scan()
    rows.write(
        task, f"{case}, {tokens} tokens", "scan", parts=found.config["seconds"], runner=found.config["runner"],
        backend=found.moments.backend,
    )  # fmt: skip


def scan_bert(rows: Rows) -> None:
    """Goals G15 and G16: the scan of 60 pairs of BERT-base, against one forward pass of Hugging Face with SDPA."""
    model, (tokens, longest) = bert(), (262_144, 128) if ON_GPU else (100, 12)
    size = 256 if ON_GPU else 4
    for kind in ("natural", "full"):
        batches = batches_of(kind, tokens, longest, size=size)
        _scan(rows, "scan of BERT-base", kind, model, batches, elements=ELEMENTS, score_sequences=0)
        _scan(rows, "scan of BERT-base, row scores too", kind, model, batches, elements=ELEMENTS)


def scan_large(rows: Rows) -> None:
    """The scan of two layers of 8B shape, with its share of the solve, against their forward pass."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_hidden_layers": 2, "vocab_size": 32_000, "pad_token_id": 0}
    if ON_GPU:
        shape |= {"hidden_size": 4096, "intermediate_size": 14_336, "num_attention_heads": 32, "num_key_value_heads": 8}
    else:
        shape |= {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.device(DEVICE):
        model = LlamaModel(LlamaConfig(**shape)).eval().to(torch.bfloat16)
    tokens, longest, size = (131_072, 512, 64) if ON_GPU else (100, 12, 4)
    batches = batches_of("full", tokens, longest, size=size)
    options = {"elements": ["layer", "attention", "ffn"], "score_sequences": 0, "folds": 0}
    _scan(rows, "scan of two layers of 8B shape", "full", model, batches, **options)


def fit(rows: Rows) -> None:
    """Goal G5: a complete fit against ``torch.linalg.lstsq``, at 384 and 768."""
    for width in (384, 768) if ON_GPU else (16,):
        n = 2**20 if ON_GPU else 256
        seeded = generator()
        x = residual_rows(n, width, seeded)
        x, y = x.bfloat16(), nearly_affine(x, width, seeded).bfloat16()

        def ours(x: Tensor = x, y: Tensor = y) -> float:
            fit = LinearFit(x.shape[1], y.shape[1], device=x.device, folds=0, cka=False)
            fit.update(x.view(-1, 128, x.shape[1]), y.view(-1, 128, y.shape[1]))
            fit.solve()
            return fit.scores()["r2"]

        def lstsq(x: Tensor = x, y: Tensor = y) -> float:
            a, b = (torch.cat([part.float(), part.new_ones(len(part), 1).float()], 1) for part in (x, y))
            coef = torch.linalg.lstsq(a, b[:, :-1]).solution
            left = b[:, :-1] - a @ coef
            return 1 - float(left.square().sum() / (b[:, :-1] - b[:, :-1].mean(0)).square().sum())

        race(rows, "fit", f"{n} x {width} bfloat16", {"ours": ours, "torch lstsq fp32": lstsq}, seconds=5.0)


def swaps(rows: Rows) -> None:
    """Goal G18: all 66 swaps of two layers of BERT-base, against a loop that moves the modules of Hugging Face."""
    model = bert()
    depth = model.config.num_hidden_layers
    (batch,) = batches_of("natural", 1, *((128,) if ON_GPU else (12,)), size=64 if ON_GPU else 4)
    wanted = [orders.identity(depth), *orders.swaps(depth)]

    @torch.no_grad()
    def moved() -> None:
        layers = model.encoder.layer
        for order in wanted:
            model.encoder.layer = nn.ModuleList(layers[i] for i in order)
            model(**batch)
        model.encoder.layer = layers

    contestants = {"ours": lambda: fp.commutativity(model, [batch], wanted, progress=False), "HF, modules moved": moved}
    race(rows, "swaps of BERT-base", f"{len(wanted)} orders", contestants, seconds=4.0)
