"""Digest of a model: processes of one run, and a run that is resumed, must have the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastprobe.models.calling import has_language_head
from fastprobe.models.resolve import ModelPoints
from fastprobe.runtime.distributed import Ranks

SAMPLES = 64
"""Numbers of a weight that count, from its beginning to its end."""


def check_same_run(model: nn.Module, points: ModelPoints, ranks: Ranks, **arguments: Any) -> None:
    """Raise if processes have different models or arguments.

    Args:
        model: the model.
        points: its resolved points.
        ranks: the processes.
        arguments: other arguments of the run, by name.

    Raises:
        InputError: an argument differs, or the configuration, names, shapes or a sample of the weights.
    """
    if ranks.size > 1:
        ranks.agree(
            "model", (_configuration(model), fingerprint(model, points)), "load the same weights in every process"
        )
        for name, value in arguments.items():
            ranks.agree(name, repr(value), "pass the same value in every process")


@torch.no_grad()
def fingerprint(model: nn.Module, points: ModelPoints) -> str:
    """Return a hash of some numbers of every weight that a run depends on, and of the number of the model's hooks.

    A training step changes it. The order of layers and the device do not.

    Args:
        model: the model. Weights that are elsewhere between calls, or that are no plain tensors, count by shape.
        points: its resolved points.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in _weights(model, points):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if type(weight) is nn.Parameter and not weight.is_meta:
            some = weight.flatten()[:: max(1, weight.numel() // SAMPLES)]
            digest.update(some.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        if hooks := len(module._forward_hooks) + len(module._forward_pre_hooks):
            digest.update(f"{name} {hooks}".encode())
    return digest.hexdigest()


def _configuration(model: nn.Module) -> str:
    config: Any = getattr(model, "config", None)
    entries = config.to_dict() if hasattr(config, "to_dict") else {}
    return repr(sorted((key, str(entry)) for key, entry in entries.items() if key != "_name_or_path"))


def _weights(model: nn.Module, points: ModelPoints) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the weights that a run depends on, by name.

    Without a language-model head a model may have a pooler, whose weights Transformers draws at random in every process
    if the file has none. It does not run.
    """
    if has_language_head(model):
        yield from model.named_parameters()
        return
    for layer in points.layers:
        yield from layer.named_parameters()
    try:
        yield from model.get_input_embeddings().named_parameters()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return
