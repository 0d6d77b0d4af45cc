"""Compare many orders of layers that share their prefixes with runs of one order after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

import fastprobe as fp
from benchmarks.models import DEVICE, Batch, natural_batches
from fastprobe import orders
from fastprobe.models.loading import load_model
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import LayerStack
from fastprobe.ops.products import FastLinear
from fastprobe.orders import Order
from fastprobe.orders.plan import OrderPlan

DEPTH, WIDTH = 12, 384
BATCHES = {"swaps": 1, "drops": 4, "commutators": 4}
"""Enough batches that the check of the layers against the model, once a run, takes a small part of the time."""

SEQUENCES, LENGTH = (8, 64) if DEVICE.type == "cpu" else (64, 128)
FAMILIES = {
    "swaps": orders.swaps(DEPTH),
    "drops": orders.drops(DEPTH),
    "commutators": [Order(pair) for pair in itertools.permutations(range(DEPTH), 2)],
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.benchmark(group="orders of a 12-layer encoder")
def bench_permute(duel: Callable[..., None], benchmark: Any, family: str) -> None:
    """Compare the time of ``commutativity`` with a loop over orders.

    The first peer permutes the modules of the Hugging Face model for every order and calls it. The second runs the same
    layers from their recorded arguments, one order after the other, with linear layers in oneDNN as in ours. Ours also
    compares states. ``layer_runs`` is the ratio of layer runs, the largest possible gain. The error is that of the
    relative distance of final hidden states from the baseline's.
    """
    torch.manual_seed(0)
    config = BertConfig(hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=12, intermediate_size=4 * WIDTH)
    model = BertModel(config).eval().to(DEVICE)
    ids = torch.randint(0, config.vocab_size, (BATCHES[family], SEQUENCES, LENGTH), device=DEVICE)
    batches = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids]
    wanted = [orders.identity(DEPTH), *FAMILIES[family]]
    duel(
        ours=lambda: [row["relative_l2"] for row in fp.commutativity(model, batches, wanted, progress=False).rows],
        peers={
            "HF, modules moved": lambda: _moved(model, batches, wanted),
            "own layers, one order after the other": lambda: _one_by_one(model, batches, wanted),
        },
        exact=lambda: _moved(model, batches, wanted),
        error=lambda mine, exact: max(abs(a - b) for a, b in zip(mine, exact, strict=True)),
        gate=1e-4,
    )
    plan = OrderPlan.of(wanted)
    benchmark.extra_info["layer_runs"] = plan.naive_applications / plan.applications


@torch.no_grad()
def _moved(model: nn.Module, batches: list[Batch], wanted: list[Order]) -> list[float]:
    """Permute the module list and run each order. Valid for BERT, whose layers do not use their index."""
    layers = model.encoder.layer
    off, norm = torch.zeros(len(wanted)), torch.zeros(())
    try:
        for batch in batches:
            states = []
            for order in wanted:
                model.encoder.layer = nn.ModuleList(layers[layer] for layer in order.layers)
                states.append(model(**batch).last_hidden_state)
            states = [state[batch["attention_mask"].bool()] for state in states]
            off += torch.stack([(state - states[0]).square().sum() for state in states])
            norm += states[0].square().sum()
    finally:
        model.encoder.layer = layers
    return (off / norm).sqrt().tolist()


@torch.no_grad()
def _one_by_one(model: nn.Module, batches: list[Batch], wanted: list[Order]) -> list[float]:
    off, norm = torch.zeros(len(wanted)), torch.zeros(())
    with FastLinear():
        for batch in batches:
            stack = LayerStack.record(model, resolve(model), batch)
            states = []
            for order in wanted:
                state = stack.stem
                for layer in order:
                    state = stack.apply(layer, state)
                states.append(state)
            off += torch.stack([(state - states[0]).square().sum() for state in states])
            norm += states[0].square().sum()
    return (off / norm).sqrt().tolist()


@pytest.mark.slow
@pytest.mark.benchmark(group="swaps of a BERT-base shape, natural lengths")
def bench_permute_natural(duel: Callable[..., None], tokens: int | None) -> None:
    """Compare the time of the 66 swaps of BERT-base with a loop of padded Hugging Face forward passes.

    The text is paragraphs in one batch. Weights are random.
    """
    torch.manual_seed(0)
    model = BertModel(BertConfig()).eval().to(DEVICE)
    _, tokenizer = load_model(None)
    batches = natural_batches(tokenizer, tokens or 200)
    wanted = [orders.identity(DEPTH), *FAMILIES["swaps"]]
    duel(
        ours=lambda: [row["relative_l2"] for row in fp.commutativity(model, batches, wanted, progress=False).rows],
        peers={"HF, modules moved": lambda: _moved(model, batches, wanted)},
        exact=lambda: _moved(model, batches, wanted),
        error=lambda mine, exact: max(abs(a - b) for a, b in zip(mine, exact, strict=True)),
        gate=1e-4,
    )
