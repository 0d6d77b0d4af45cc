"""FFN half of an encoder layer: linear layers with GELU between them, skip connection and LayerNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch.cpu_library import cpu_refuses_floats
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops._dispatch.triton import passed_over, refuses_floats
from fastprobe.ops.encoder import cpu, triton
from fastprobe.ops.encoder.add_norm import add_norm
from fastprobe.ops.encoder.bias_gelu import bias_gelu_
from fastprobe.ops.encoder.layers import Layer, Norm, check_layer, check_norm, tensors_of
from fastprobe.ops.products import linear


class FfnOutput(NamedTuple):
    """Result of :func:`ffn_sublayer`."""

    layers: list[Tensor | None]  # (N, E) of each layer, after its GELU; None where it was not kept
    state: Tensor  # (N, D)


def _check(x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]) -> None:
    if x.ndim != 2 or not layers or len(keep) != len(layers):
        raise ShapeError(
            f"ffn_sublayer: x must be (N, D), with a choice for each layer whether to keep its output; got "
            f"{tuple(x.shape)}, {len(layers)} layers and {len(keep)} choices"
        )
    depth = x.shape[1]
    for layer in layers:
        check_layer("ffn_sublayer", layer, depth, x.dtype)
        depth = len(layer[0])
    if residual.shape != (len(x), depth) or residual.dtype != x.dtype:
        raise ShapeError(
            f"ffn_sublayer: residual must be {(len(x), depth)} {x.dtype}, got {tuple(residual.shape)} {residual.dtype}"
        )
    check_norm("ffn_sublayer", norm, depth, x.dtype)


@operation(check=_check)
def ffn_sublayer(x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]) -> FfnOutput:
    """Apply linear layers with GELU between them, add their output to a state, and take the LayerNorm of the sum.

        h_0 = x
        h_i = gelu(h_(i-1) weight_i^T + bias_i)     without GELU for the last
        state = LayerNorm(h_last + residual)

    Two layers are the FFN of BERT. The GELU is the one with erf.

    Args:
        x: ``(N, D)``, any floating dtype.
        layers: weight ``(E, D)`` and bias ``(E,)`` or ``None`` of each, in the dtype of ``x``.
        residual: ``(N, E)`` for the E of the last layer.
        norm: weight and bias ``(E,)``, and what is added to the variance.
        keep: for each layer, whether to return its output.

    Returns:
        The outputs that are kept and the state, all in the dtype of ``x``.

    Raises:
        ShapeError: a layer does not take the output of the one before, or the residual or norm that of the last.
    """
    outputs = [x]
    for weight, bias in layers[:-1]:
        outputs.append(F.gelu(linear(outputs[-1], weight, bias)))
    outputs.append(linear(outputs[-1], *layers[-1]))
    return FfnOutput(_kept(outputs[1:], keep), F.layer_norm(outputs[-1] + residual, residual.shape[1:], *norm))


def _kept(outputs: Sequence[Tensor], keep: Sequence[bool]) -> list[Tensor | None]:
    return [output if wanted else None for output, wanted in zip(outputs, keep, strict=True)]


def _cpu_refuses(x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]) -> str | None:
    return cpu_refuses_floats([x, residual, *tensors_of(layers, norm)])


@ffn_sublayer.register("cpu", unless=_cpu_refuses)
def _on_cpu(x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]) -> FfnOutput:
    """Run one C++ kernel, or a library's products and the C++ GELU and norm where those are faster."""
    if not cpu.products_are_faster(len(x)):
        return _step_by_step("cpu", x, layers, residual, norm, keep)
    outputs = [
        x.new_empty(len(x), len(weight)) if kept else None for (weight, _), kept in zip(layers, keep, strict=True)
    ]
    state = torch.empty(residual.shape, dtype=x.dtype)
    cpu.launch_ffn_sublayer(x, layers, outputs, residual, norm, state)
    return FfnOutput(outputs, state)


def _triton_refuses(
    x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]
) -> str | None:
    return add_norm.refusals(residual, residual, *norm)["triton"] or refuses_floats((x, residual))


@ffn_sublayer.register(
    "triton",
    unless=_triton_refuses,
    passed_over=lambda x, *_, **__: (
        passed_over((x,), triton.add_norm_agrees) or passed_over((x,), triton.bias_gelu_agrees)
    ),
)
def _on_triton(x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]) -> FfnOutput:
    """Run a library's products, ``kernels/bias_gelu.py`` and ``kernels/add_norm.py``."""
    return _step_by_step("triton", x, layers, residual, norm, keep)


def _step_by_step(
    backend: str, x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]
) -> FfnOutput:
    """Run a library's products, and GELU and norm on ``backend``."""
    outputs = [x]
    for weight, bias in layers[:-1]:
        output = linear(outputs[-1], weight, None)
        bias_gelu_.on(backend)(output, output.new_zeros(len(weight)) if bias is None else bias)
        outputs.append(output)
    outputs.append(linear(outputs[-1], *layers[-1]))
    return FfnOutput(_kept(outputs[1:], keep), add_norm.on(backend)(outputs[-1], residual, *norm))
