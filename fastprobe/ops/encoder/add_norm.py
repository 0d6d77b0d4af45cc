"""Skip connection and LayerNorm at the end of a sub-layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch.cpu_library import cpu_refuses_floats
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops._dispatch.triton import passed_over, refuses_floats
from fastprobe.ops.encoder import cpu, triton
from fastprobe.ops.encoder.layers import Norm

WIDEST = 16_384
"""Most columns of a row that the Triton kernel holds in registers."""


def _check(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    if x.ndim != 2 or residual.shape != x.shape or residual.dtype != x.dtype:
        raise ShapeError(
            f"add_norm: x and residual must be (N, D) alike, got {tuple(x.shape)} {x.dtype} and "
            f"{tuple(residual.shape)} {residual.dtype}"
        )
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector.shape != x.shape[1:] or vector.dtype != x.dtype:
            raise ShapeError(
                f"add_norm: {name} must be ({x.shape[1]},) {x.dtype} to match x, "
                f"got {tuple(vector.shape)} {vector.dtype}"
            )


@operation(check=_check)
def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the LayerNorm of the sum of two states, row by row.

        s = x + residual
        out = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias    mean and (biased) variance over a row

    Args:
        x: ``(N, D)``, any floating dtype.
        residual: ``(N, D)``, the same dtype.
        weight: ``(D,)``, the same dtype.
        bias: ``(D,)``, the same dtype.
        eps: added to the variance.

    Returns:
        ``(N, D)`` in the dtype of ``x``.

    Raises:
        ShapeError: an argument does not match ``x``.
    """
    return F.layer_norm(x + residual, x.shape[1:], weight, bias, eps)


def _cpu_refuses(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> str | None:
    return cpu_refuses_floats((x, residual, weight, bias))


@add_norm.register("cpu", unless=_cpu_refuses)
def _on_cpu(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    cpu.launch_add_norm(x, residual, Norm(weight, bias, eps), out)
    return out


def _triton_refuses(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> str | None:
    if x.shape[1] > WIDEST:
        return f"it takes rows of up to {WIDEST} columns, not {x.shape[1]}"
    return refuses_floats((x, residual, weight, bias))


@add_norm.register(
    "triton", unless=_triton_refuses, passed_over=lambda x, *_, **__: passed_over((x,), triton.add_norm_agrees)
)
def _on_triton(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return triton.add_norm_operator(x, residual, weight, bias, eps)
