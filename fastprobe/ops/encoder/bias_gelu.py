"""The activation of an FFN on what its first product left: bias, then GELU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch import cpu_library as _native
from fastprobe.ops._dispatch import triton as _triton
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops.encoder import triton as _triton_encoder


def _check(x: Tensor, bias: Tensor) -> None:
    if x.ndim != 2 or not x.dtype.is_floating_point:
        raise ShapeError(f"bias_gelu_: x must be (N, D) floating, got {tuple(x.shape)} {x.dtype}")
    if bias.shape != x.shape[1:] or bias.dtype != x.dtype:
        raise ShapeError(
            f"bias_gelu_: bias must be ({x.shape[1]},) {x.dtype} to match x, got {tuple(bias.shape)} {bias.dtype}"
        )


@operation(check=_check)
def bias_gelu_(x: Tensor, bias: Tensor) -> None:
    """Replace ``x`` by the GELU of ``x + bias``, in place.

        x[n, d] = z (1 + erf(z / sqrt(2))) / 2    with z = x[n, d] + bias[d]

    This is the form of BERT; the one with tanh is off from it by up to 4e-4.

    Args:
        x: ``(N, D)``, any floating dtype. torch rounds 16-bit numbers once more, after the sum.
        bias: ``(D,)``, the same dtype.

    Raises:
        ShapeError: ``bias`` does not match ``x``.
    """
    x.copy_(F.gelu(x.add_(bias)))


def _cpu_refuses(x: Tensor, bias: Tensor) -> str | None:
    return _native.cpu_refuses_floats((x, bias)) or (None if x.is_contiguous() else "x is not contiguous")


@bias_gelu_.register("cpu", unless=_cpu_refuses)
def _cpu(x: Tensor, bias: Tensor) -> None:
    """``csrc/cpu/rowwise.cpp``: in one sweep, and by the tail of the distribution where ``1 + erf`` would cancel."""
    _native.cpu_library().bias_gelu(
        x=x.data_ptr(),
        bias=bias.data_ptr(),
        n=len(x),
        width=x.shape[1],
        threads=torch.get_num_threads(),
        isa=_native.chosen_instruction_set(),
    )


def _triton_refuses(x: Tensor, bias: Tensor) -> str | None:
    return _triton.refuses_floats((x, bias)) or (
        None if x.stride(1) == 1 else "the columns of x do not lie side by side"
    )


@bias_gelu_.register(
    "triton",
    unless=_triton_refuses,
    passed_over=lambda x, bias: _triton.passed_over((x,), _triton_encoder.bias_gelu_agrees),
)
def _triton_kernel(x: Tensor, bias: Tensor) -> None:
    """``kernels/bias_gelu.py``: in one sweep."""
    _triton_encoder.bias_gelu_(x, bias)
