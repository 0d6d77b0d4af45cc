"""Fingerprint of a model, so that a run does not continue, and is not merged with, the sums of another one."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

SAMPLES = 64
"""Numbers of a weight that count, from its beginning to its end."""


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """Return a hash of some numbers of every weight of a model, and of the number of its hooks.

    A training step changes it. The order of layers and the device do not.

    Args:
        model: any model. Weights that are elsewhere between calls, or that are no plain tensors, count by shape.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        if type(weight) is nn.Parameter and not weight.is_meta:
            some = weight.flatten()[:: max(1, weight.numel() // SAMPLES)]
            digest.update(some.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for name, module in model.named_modules():
        if hooks := len(module._forward_hooks) + len(module._forward_pre_hooks):
            digest.update(f"{name} {hooks}".encode())
    return digest.hexdigest()
