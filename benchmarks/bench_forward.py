"""The forward pass of a BERT-family encoder: what does leaving padding out and fusing its small steps gain?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.models import DEVICE, Batch, full_batches, natural_batches, sorted_by_length
from fastprobe.data.batches import batch_tokens, grouped, merge
from fastprobe.models.loading import load_model
from fastprobe.models.resolve import resolve
from fastprobe.models.unpadded.encoder import Encoder
from fastprobe.models.unpadded.tokens import FlatTokens
from fastprobe.runtime.memory import freed_memory_kept


@pytest.mark.parametrize("text", ["natural", "full"])
@pytest.mark.benchmark(group="forward of the demo encoder")
def bench_forward(duel: Callable[..., None], benchmark: Any, text: str, tokens: int | None) -> None:
    """How many times as fast as Hugging Face's are final states, of paragraphs or of sequences of full length?

    Paragraphs come in batches of 32 as they lie in the text; the peer "sorted" gets the same ones in batches of like
    lengths. Ours puts small batches together, as scans do. The error is the largest of a final state.
    """
    model, tokenizer = load_model(None)
    make = natural_batches if text == "natural" else full_batches
    batches = make(tokenizer, tokens or 8192)
    peers: dict[str, Callable[[], Any]] = {"HF": lambda: _forward(model, batches)}
    if text == "natural":
        sorted_batches = sorted_by_length(batches)
        peers["HF, batches sorted by length"] = lambda: _forward(model, sorted_batches)[:0]
    else:
        compiled = torch.compile(model)
        peers["torch.compile of HF"] = lambda: _forward(compiled, batches)
    duel(
        ours=lambda: _ours(model, batches),
        peers=peers,
        exact=lambda: _forward(model, batches),
        error=_error,
        gate=1e-5,
        flops=_linear_operations(model, batches),
    )


@pytest.mark.benchmark(group="forward of the demo encoder in bfloat16")
def bench_forward_bfloat16(duel: Callable[..., None], tokens: int | None) -> None:
    """How many times as fast are final states in bfloat16 as our own in float32, and as Hugging Face's in bfloat16?

    Paragraphs as they come. The error is of final states of norm 1 a number, so the gate is that of bfloat16.
    """
    model, tokenizer = load_model(None)
    batches = natural_batches(tokenizer, tokens or 8192)
    short = copy.deepcopy(model).to(torch.bfloat16)
    duel(
        ours=lambda: _ours(short, batches),
        peers={"ours, float32": lambda: _ours(model, batches), "HF, bfloat16": lambda: _forward(short, batches)},
        exact=lambda: _forward(model, batches),
        error=_error,
        gate=0.5,
        flops=_linear_operations(model, batches),
    )


@torch.no_grad()
def _forward(model: Callable[..., Any], batches: list[Batch]) -> list[Tensor]:
    return [model(**batch)[0][batch["attention_mask"].bool()] for batch in batches]


@torch.no_grad()
def _ours(model: nn.Module, batches: list[Batch]) -> list[Tensor]:
    encoder = Encoder(model, resolve(model))
    final = []
    with freed_memory_kept():
        for together in grouped(batches, batch_tokens(DEVICE.type)):
            batch = merge(together)
            flat = FlatTokens.of(batch["attention_mask"].bool())
            state = encoder.stem(batch, flat)
            for layer in encoder.layers:
                state = layer(state, flat)
            final.append(state[flat.index.argsort()])
    return final


def _error(states: list[Tensor], exact: list[Tensor]) -> float | None:
    if not states:
        return None
    return float((torch.cat(states) - torch.cat(exact)).abs().max())


def _linear_operations(model: Any, batches: list[Batch]) -> float:
    width, inner = model.config.hidden_size, model.config.intermediate_size
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return 2.0 * tokens * model.config.num_hidden_layers * (4 * width * width + 2 * width * inner)
