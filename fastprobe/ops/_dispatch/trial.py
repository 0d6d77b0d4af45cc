"""What trials of kernels against torch share."""

from __future__ import annotations

import torch
from torch import Tensor

GATE = 1e-5
"""Largest error of a trial, of the size of what is computed."""


def normal(device: torch.device, *shapes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(*shape, device=device, generator=generator) for shape in shapes]


def near(got: Tensor, exact: Tensor) -> bool:
    return bool((got.double() - exact).abs().max() <= GATE * exact.abs().max())
