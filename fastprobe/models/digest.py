"""Digest of a model, by which processes see that they have the same one."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from fastprobe.runtime.distributed import Ranks

SAMPLED = 16
"""Numbers of each weight that are compared."""


def check_same_model(model: nn.Module, ranks: Ranks) -> None:
    """Raise if processes have different models.

    Raises:
        InputError: configuration, names, shapes or a sample of the weights differ.
    """
    if ranks.size > 1:
        ranks.agree("model", _digest(model), "load the same weights in every process")


def _digest(model: nn.Module) -> bytes:
    """Return a digest of the configuration and of a sample of every weight. Weights without memory count by name."""
    found = hashlib.blake2b(digest_size=16)
    config: Any = getattr(model, "config", None)
    if hasattr(config, "to_json_string"):
        found.update(config.to_json_string().encode())
    for name, weight in model.named_parameters():
        found.update(repr((name, tuple(weight.shape), str(weight.dtype))).encode())
        if not weight.is_meta and weight.numel():
            numbers = weight.detach().reshape(-1)[:: max(1, weight.numel() // SAMPLED)]
            found.update(numbers.to("cpu", torch.float64).numpy().tobytes())
    return found.digest()
