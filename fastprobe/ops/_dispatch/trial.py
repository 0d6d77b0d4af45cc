"""Comparison of a kernel with torch on random numbers, before ``auto`` takes the kernel on a device."""

from __future__ import annotations

import torch
from torch import Tensor

GATE = 1e-5
"""Largest error that is accepted, relative to the largest exact number."""


def normal(device: torch.device, *shapes: tuple[int, int]) -> list[Tensor]:
    """Return standard normal matrices of these shapes, float32, the same in every process."""
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(*shape, device=device, generator=generator) for shape in shapes]


def near(got: Tensor, exact: Tensor) -> bool:
    """Return whether every number of ``got`` is within :data:`GATE` of ``exact``, float64."""
    return bool((got.double() - exact).abs().max() <= GATE * exact.abs().max())
