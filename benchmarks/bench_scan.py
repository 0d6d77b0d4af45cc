"""A whole scan of the demo encoder: what does it cost on top of running the model, and does its memory stay put?"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastprobe
from benchmarks.models import Batch, full_batches, natural_batches, sorted_by_length
from fastprobe import LinearityScan
from fastprobe.models.loading import load_model
from fastprobe.ops.products import FastLinear

PEAK = """
import json, resource, sys
import fastprobe
from fastprobe.data.sources import load_text
from fastprobe.models.loading import load_model
model, tokenizer = load_model(None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
batches = fastprobe.token_batches(load_text([], None, "train")[0], tokenizer, tokens=int(sys.argv[1]))
scan = fastprobe.linearity(model, batches, progress=False)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"tokens": scan.config["tokens"], "loaded_mb": before / 1024, "peak_mb": after / 1024,
                  "moments_mb": scan.config["moment_bytes"] / 2**20}))
"""
"""A process of its own for every size: the peak of a process never goes down."""


@pytest.mark.parametrize("text", ["packed", "natural"])
@pytest.mark.benchmark(group="scan of the demo encoder")
def bench_scan(duel: Callable[..., None], benchmark: Any, text: str, tokens: int | None) -> None:
    """How many times the plain forward pass does ``linearity`` with default arguments take, on the same batches?

    The scan contains one forward pass over all tokens and one over the 64 sequences that are scored row by row. Text
    is packed into sequences of 128 tokens, or one paragraph is one sequence in batches of 32 as they come, which the
    last peer gets sorted by length. Peers have nothing to compare; the scan's own R² is checked on elements "layer", by
    lstsq in float64 on the states of the model.
    """
    model, tokenizer = load_model(None)
    make = full_batches if text == "packed" else natural_batches
    batches = make(tokenizer, tokens or 16_384)
    peers = {"HF forward": lambda: _forward(model, batches)}
    if text == "packed":
        peers["HF forward, linears as ours"] = lambda: _forward_fast(model, batches)
    else:
        sorted_batches = sorted_by_length(batches)
        peers["HF forward, sorted by length"] = lambda: _forward(model, sorted_batches)
    duel(
        ours=lambda: fastprobe.linearity(model, batches, progress=False),
        peers=peers,
        exact=lambda: _layers_r2(model, batches),
        error=_error,
        gate=1e-5,
    )
    if info := benchmark.extra_info:
        info["case"] = f"{text}, {sum(int(batch['attention_mask'].sum()) for batch in batches)} tokens"
        info["scan_over_forward"] = {name: 1 / peer["ratio"] for name, peer in info["peers"].items()}


@pytest.mark.slow
@pytest.mark.benchmark(group="memory of a scan")
def bench_scan_memory(benchmark: Any) -> None:
    """Does the peak memory of a scan grow with the number of tokens? From 32k to 128k it may not by over a tenth."""
    peaks = benchmark.pedantic(lambda: [_peak(tokens) for tokens in (32_768, 131_072)], rounds=1)
    benchmark.extra_info["memory"] = peaks
    assert peaks[1]["peak_mb"] < 1.1 * peaks[0]["peak_mb"], peaks


def _peak(tokens: int) -> dict[str, float]:
    run = subprocess.run([sys.executable, "-c", PEAK, str(tokens)], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@torch.no_grad()
def _forward(model: nn.Module, batches: list[Batch]) -> None:
    for batch in batches:
        model(**batch)


@torch.no_grad()
def _forward_fast(model: nn.Module, batches: list[Batch]) -> None:
    with FastLinear():
        _forward(model, batches)


@torch.no_grad()
def _layers_r2(model: nn.Module, batches: list[Batch]) -> list[float]:
    """R² of each layer, from its input to its output, by a float64 SVD without the null direction of LayerNorm."""
    kept: list[list[torch.Tensor]] = []
    for batch in batches:
        states = model(**batch, output_hidden_states=True).hidden_states
        kept.append([state[batch["attention_mask"].bool()] for state in states])
    states = [torch.cat(parts).cpu().double() for parts in zip(*kept, strict=True)]
    scores = []
    for x, y in itertools.pairwise(states):
        x, y = (x - x.mean(0)) / x.std(0), y - y.mean(0)
        coef = torch.linalg.lstsq(x, y, rcond=1e-5, driver="gelsd").solution
        scores.append(1 - float((y - x @ coef).square().sum() / y.square().sum()))
    return scores


def _error(scan: LinearityScan | None, exact: list[float]) -> float | None:
    if scan is None:
        return None
    r2 = [row["r2"] for row in scan.rows if row["element"] == "layer"]
    return max(abs(a - b) for a, b in zip(r2, exact, strict=True))
