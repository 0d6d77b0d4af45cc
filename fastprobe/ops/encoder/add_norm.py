"""The end of a sub-layer: its output, the skip connection and the LayerNorm."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch import cpu_library as _native
from fastprobe.ops._dispatch import triton as _triton
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops.encoder import triton as _triton_encoder

WIDEST = 16_384
"""Columns of a row that the Triton kernel holds in registers."""


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
    """LayerNorm of the sum of two states, row by row.

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
    return _native.cpu_refuses_floats((x, residual, weight, bias))


@add_norm.register("cpu", unless=_cpu_refuses)
def _cpu(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``csrc/cpu/rowwise.cpp``: a row goes through memory once."""
    out = torch.empty(x.shape, dtype=x.dtype)
    _native.cpu_library().add_norm(
        x=_native.matrix_argument(x),
        residual=_native.matrix_argument(residual),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        n=len(x),
        width=x.shape[1],
        eps=eps,
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
        isa=_native.chosen_instruction_set(),
    )
    return out


def _triton_refuses(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> str | None:
    if x.shape[1] > WIDEST:
        return f"it takes rows of up to {WIDEST} columns, not {x.shape[1]}"
    return _triton.refuses_floats((x, residual, weight, bias))


@add_norm.register(
    "triton",
    unless=_triton_refuses,
    passed_over=lambda x, *_: _triton.passed_over((x,), _triton_encoder.add_norm_agrees),
)
def _triton_kernel(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``kernels/add_norm.py``: a row goes through memory once."""
    return _triton_encoder.add_norm(x, residual, weight, bias, eps)
