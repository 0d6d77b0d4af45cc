"""What every verb does with a toy model of the catalogue: it works, or it raises an error of fastprobe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fastprobe as fp
from fastprobe.errors import FastprobeError
from fastprobe.models.calling import without_cache
from fastprobe.models.examples import text_batch
from fastprobe.models.identities import check_points
from fastprobe.models.resolve import resolve


def batches_of(model: nn.Module, side: str = "right") -> list[dict[str, Tensor]]:
    """Return two batches of three sequences of 10 to 16 tokens, padded on one side."""
    ids = text_batch(model)["input_ids"]
    ids = torch.cat([ids, ids.flip(1), ids.flip(0)])
    columns, lengths = torch.arange(ids.shape[1]), torch.tensor([16, 12, 10, 16, 13, 11])[:, None]
    mask = (columns < lengths if side == "right" else columns >= 16 - lengths).long()
    ids = torch.where(mask.bool(), ids, 0)
    return [{"input_ids": ids[i : i + 3], "attention_mask": mask[i : i + 3]} for i in (0, 3)]


def verbs(model: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, Callable[[], Any]]:
    """Return the verbs, each as a call on the model."""

    def points() -> Any:
        found = resolve(model)
        checked = check_points(found.part_of(model), found, batches[0])
        checked.require(type(model).__name__)
        return checked

    def permuted() -> Any:
        depth = len(resolve(model).layers)
        with fp.permute_layers(model, [*reversed(range(depth))]), torch.no_grad():
            part = resolve(model).part_of(model)
            return part(**batches[0], **without_cache(part))

    quiet: dict[str, Any] = {"progress": False}
    return {
        "points": points,
        "linearity": lambda: fp.linearity(model, batches, folds=2, spans="all", score_sequences=2, **quiet),
        "orders": lambda: fp.commutativity(model, batches, [[*reversed(range(len(resolve(model).layers)))]], **quiet),
        "commutator": lambda: fp.commutator(model, batches, **quiet),
        "ablate layer": lambda: fp.ablation(model, batches, elements="layer", layers=[0], **quiet),
        "ablate": lambda: fp.ablation(model, batches, elements=["mlp", "attn"], mode=["zero", "mean"], **quiet),
        "probe": lambda: fp.probe(model, batches, tasks="token", folds=0, score_sequences=0, **quiet),
        "permute": permuted,
    }


def outcomes(model: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Return the result of each verb, or its error as text."""
    found: dict[str, Any] = {}
    for name, verb in verbs(model, batches).items():
        try:
            found[name] = verb()
        except FastprobeError as error:
            found[name] = str(error)
    return found
