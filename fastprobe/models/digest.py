"""Digest of a model, by which processes see that they have the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastprobe.models.calling import has_language_head
from fastprobe.models.resolve import ModelPoints
from fastprobe.runtime.distributed import Ranks

SAMPLED = 16
"""Numbers of each weight that are compared."""


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
        ranks.agree("model", _digest(model, points), "load the same weights in every process")
        for name, value in arguments.items():
            ranks.agree(name, repr(value), "pass the same value in every process")


def _digest(model: nn.Module, points: ModelPoints) -> bytes:
    """Return a digest of the configuration and of a sample of every weight. Weights without memory count by name."""
    found = hashlib.blake2b(digest_size=16)
    config: Any = getattr(model, "config", None)
    entries = config.to_dict() if hasattr(config, "to_dict") else {}
    found.update(repr(sorted((key, str(entry)) for key, entry in entries.items() if key != "_name_or_path")).encode())
    for name, weight in _weights(model, points):
        found.update(repr((name, tuple(weight.shape), str(weight.dtype))).encode())
        if not weight.is_meta and weight.numel():
            numbers = weight.detach().reshape(-1)[:: max(1, weight.numel() // SAMPLED)]
            found.update(numbers.to("cpu", torch.float64).numpy().tobytes())
    return found.digest()


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
