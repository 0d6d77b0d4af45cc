"""The FFN half of an encoder's layer: linear layers with GELU between them, the skip connection and the LayerNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch import triton as _triton
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops.encoder import layers as _linear_layers
from fastprobe.ops.encoder import triton as _triton_encoder
from fastprobe.ops.encoder.add_norm import add_norm
from fastprobe.ops.encoder.bias_gelu import bias_gelu_
from fastprobe.ops.encoder.layers import Layer, Norm
from fastprobe.ops.products import linear


class FfnOutput(NamedTuple):
    """What :func:`ffn_sublayer` returns."""

    layers: list[Tensor | None]  # (N, E) of each layer, after its GELU; None where it was not to be kept
    state: Tensor  # (N, D)


def _check(x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]) -> None:
    if x.ndim != 2 or not layers or len(keep) != len(layers):
        raise ShapeError(
            f"ffn_sublayer: x must be (N, D), with a choice for each layer whether to keep its output; got "
            f"{tuple(x.shape)}, {len(layers)} layers and {len(keep)} choices"
        )
    depth = x.shape[1]
    for layer in layers:
        _linear_layers.check_layer("ffn_sublayer", layer, depth, x.dtype)
        depth = len(layer[0])
    if residual.shape != (len(x), depth) or residual.dtype != x.dtype:
        raise ShapeError(
            f"ffn_sublayer: residual must be {(len(x), depth)} {x.dtype}, got {tuple(residual.shape)} {residual.dtype}"
        )
    _linear_layers.check_norm("ffn_sublayer", norm, depth, x.dtype)


@operation(check=_check)
def ffn_sublayer(x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]) -> FfnOutput:
    """Linear layers with GELU between them, their output added to a state, and the LayerNorm of the sum.

        h_0 = x
        h_i = gelu(h_(i-1) weight_i^T + bias_i)     without GELU for the last
        state = LayerNorm(h_last + residual)

    Two layers are the FFN of BERT. The GELU is the one with erf.

    Args:
        x: ``(N, D)``, any floating dtype.
        layers: weight ``(E, D)`` and bias ``(E,)`` or ``None`` of each, of the dtype of ``x``.
        residual: ``(N, E)`` for the E of the last layer.
        norm: weight and bias ``(E,)``, and what is added to the variance.
        keep: for each layer, whether its output is returned.

    Returns:
        The outputs to be kept and the state, all in the dtype of ``x``.

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
    return _linear_layers.cpu_refuses(layers, norm, x, residual)


@ffn_sublayer.register("cpu", unless=_cpu_refuses)
def _cpu(x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]) -> FfnOutput:
    """In C++, with the products by a library where that is faster."""
    if not _linear_layers.are_faster(len(x)):
        return _step_by_step("cpu", x, layers, residual, norm, keep)
    outputs = [
        x.new_empty(len(x), len(weight)) if kept else None for (weight, _), kept in zip(layers, keep, strict=True)
    ]
    state = torch.empty(residual.shape, dtype=x.dtype)
    _linear_layers.run_ffn(x, layers, outputs, residual, norm, state)
    return FfnOutput(outputs, state)


def _triton_refuses(
    x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]
) -> str | None:
    return add_norm.refusals(residual, residual, *norm)["triton"] or _triton.refuses_floats((x, residual))


@ffn_sublayer.register(
    "triton",
    unless=_triton_refuses,
    passed_over=lambda x, *_: (
        _triton.passed_over((x,), _triton_encoder.add_norm_agrees)
        or _triton.passed_over((x,), _triton_encoder.bias_gelu_agrees)
    ),
)
def _triton_kernels(
    x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]
) -> FfnOutput:
    """Products by a library; what follows them by ``kernels/bias_gelu.py`` and ``kernels/add_norm.py``."""
    return _step_by_step("triton", x, layers, residual, norm, keep)


def _step_by_step(
    backend: str, x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]
) -> FfnOutput:
    outputs = [x]
    for weight, bias in layers[:-1]:
        output = linear(outputs[-1], weight, None)
        bias_gelu_(output, output.new_zeros(len(weight)) if bias is None else bias, backend=backend)
        outputs.append(output)
    outputs.append(linear(outputs[-1], *layers[-1]))
    return FfnOutput(_kept(outputs[1:], keep), add_norm(outputs[-1], residual, *norm, backend=backend))
