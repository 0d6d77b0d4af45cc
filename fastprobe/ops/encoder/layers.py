"""Arguments of the sub-layer operations, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastprobe.errors import ShapeError

Layer = tuple[Tensor, Tensor | None]
"""Weight ``(E, D)`` and bias ``(E,)`` of ``x weight^T + bias``."""

Runs = Sequence[tuple[int, int]]
"""(sequences, length) of each run of sequences of one length, in the order of the rows."""


class Norm(NamedTuple):
    """Parameters of a LayerNorm."""

    weight: Tensor  # (D,)
    bias: Tensor  # (D,)
    eps: float


def check_layer(operation: str, layer: Layer, depth: int, dtype: torch.dtype) -> None:
    """Raise ``ShapeError`` unless a layer takes rows of width ``depth`` and dtype ``dtype``."""
    weight, bias = layer
    if weight.ndim != 2 or weight.shape[1] != depth or weight.dtype != dtype:
        raise ShapeError(
            f"{operation}: a weight must be (E, {depth}) {dtype} for its input, "
            f"got {tuple(weight.shape)} {weight.dtype}"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != dtype):
        raise ShapeError(
            f"{operation}: a bias must be ({len(weight)},) {dtype} to match its weight, "
            f"got {tuple(bias.shape)} {bias.dtype}"
        )


def check_norm(operation: str, norm: Norm, width: int, dtype: torch.dtype) -> None:
    """Raise ``ShapeError`` unless a norm takes rows of width ``width`` and dtype ``dtype``."""
    for name, vector in (("weight", norm.weight), ("bias", norm.bias)):
        if vector.shape != (width,) or vector.dtype != dtype:
            raise ShapeError(
                f"{operation}: the {name} of the norm must be ({width},) {dtype}, "
                f"got {tuple(vector.shape)} {vector.dtype}"
            )


def tensors_of(layers: Sequence[Layer], norm: Norm) -> list[Tensor]:
    """Return all parameters of layers and of a norm."""
    return [*(tensor for layer in layers for tensor in layer if tensor is not None), norm.weight, norm.bias]
