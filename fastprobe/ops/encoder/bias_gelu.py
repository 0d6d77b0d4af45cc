"""Bias and GELU between the two products of an FFN."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch.cpu_library import cpu_refuses_floats
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops._dispatch.triton import passed_over, refuses_floats
from fastprobe.ops.encoder import cpu, triton


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

    This is the GELU of BERT. The approximation by tanh differs from it by up to 4e-4.
    The C++ kernel computes the tail of the distribution where ``1 + erf`` would cancel.

    Args:
        x: ``(N, D)``, any floating dtype. The definition rounds 16-bit numbers after the sum, too.
        bias: ``(D,)``, the same dtype.

    Raises:
        ShapeError: ``bias`` does not match ``x``.
    """
    x.copy_(F.gelu(x.add_(bias)))


def _cpu_refuses(x: Tensor, bias: Tensor) -> str | None:
    return cpu_refuses_floats((x, bias)) or (None if x.is_contiguous() else "x is not contiguous")


@bias_gelu_.register("cpu", unless=_cpu_refuses)
def _on_cpu(x: Tensor, bias: Tensor) -> None:
    cpu.launch_bias_gelu(x, bias)


def _triton_refuses(x: Tensor, bias: Tensor) -> str | None:
    return refuses_floats((x, bias)) or (None if x.stride(1) == 1 else "the columns of x do not lie side by side")


@bias_gelu_.register(
    "triton", unless=_triton_refuses, passed_over=lambda x, bias: passed_over((x,), triton.bias_gelu_agrees)
)
def _on_triton(x: Tensor, bias: Tensor) -> None:
    triton.bias_gelu_operator(x, bias)
