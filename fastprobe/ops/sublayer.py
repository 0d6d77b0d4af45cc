"""A sub-layer of an encoder from its linear layers on: GELU between them, the skip connection and the LayerNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops import _linear_layers, _native, _triton, _triton_encoder
from fastprobe.ops._linear_layers import Layer
from fastprobe.ops._operation import operation
from fastprobe.ops._platform import linear
from fastprobe.ops.add_norm import add_norm
from fastprobe.ops.bias_gelu import bias_gelu_


class Norm(NamedTuple):
    """A LayerNorm."""

    weight: Tensor  # (D,)
    bias: Tensor  # (D,)
    eps: float


class SublayerOutput(NamedTuple):
    """What :func:`sublayer` returns."""

    layers: list[Tensor | None]  # (N, E) of each layer, after its GELU; None where it was not to be kept
    out: Tensor  # (N, D)


def _check(x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]) -> None:
    if not layers or len(keep) != len(layers):
        raise ShapeError(f"sublayer: {len(keep)} choices of what to keep for {len(layers)} layers")
    rows = x
    for layer in layers:
        _linear_layers.check("sublayer", rows, layer)
        rows = x.new_empty((len(x), len(layer[0])), device="meta")
    for name, tensor, shape in (
        ("residual", residual, rows.shape),
        ("weight of the norm", norm.weight, rows.shape[1:]),
        ("bias of the norm", norm.bias, rows.shape[1:]),
    ):
        if tensor.shape != shape or tensor.dtype != x.dtype:
            raise ShapeError(
                f"sublayer: {name} must be {tuple(shape)} {x.dtype}, got {tuple(tensor.shape)} {tensor.dtype}"
            )


@operation(check=_check)
def sublayer(x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]) -> SublayerOutput:
    """Linear layers with GELU between them, their output added to a state, and the LayerNorm of the sum.

        h_0 = x
        h_i = gelu(h_(i-1) weight_i^T + bias_i)     without GELU for the last
        out = LayerNorm(h_last + residual)

    With two layers the FFN of BERT, with one the end of its attention. The GELU is the one with erf.

    Args:
        x: ``(N, D)``, any floating dtype.
        layers: weight ``(E, D)`` and bias ``(E,)`` or ``None`` of each, of the dtype of ``x``.
        residual: ``(N, E)`` for the E of the last layer.
        norm: weight and bias ``(E,)``, and what is added to the variance.
        keep: for each layer, whether its output is returned.

    Returns:
        The outputs to be kept and the result, all in the dtype of ``x``.

    Raises:
        ShapeError: a layer does not take the output of the one before, or the residual or norm that of the last.
    """
    outputs = [x]
    for index, (weight, bias) in enumerate(layers):
        output = linear(outputs[-1], weight, bias)
        outputs.append(output if index == len(layers) - 1 else F.gelu(output))
    total = outputs[-1] + residual
    return SublayerOutput(_kept(outputs[1:], keep), F.layer_norm(total, total.shape[1:], *norm))


def _kept(outputs: Sequence[Tensor], keep: Sequence[bool]) -> list[Tensor | None]:
    return [output if wanted else None for output, wanted in zip(outputs, keep, strict=True)]


def _cpu_refuses(x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]) -> str | None:
    return _linear_layers.cpu_refuses(x, layers, [residual, norm.weight, norm.bias])


@sublayer.register("cpu", unless=_cpu_refuses)
def _cpu(x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]) -> SublayerOutput:
    """``csrc/cpu/sublayer.cpp`` where its products are the faster ones: block of rows by block, all in a cache."""
    if not _linear_layers.are_faster(len(x)):
        return _step_by_step("cpu", x, layers, residual, norm, keep)
    outputs = [
        torch.empty(len(x), len(weight), dtype=x.dtype) if wanted else None
        for (weight, _), wanted in zip(layers, keep, strict=True)
    ]
    out = torch.empty(residual.shape, dtype=x.dtype)
    _native.cpu_library().sublayer(
        x=_native.matrix_argument(x),
        n=len(x),
        depth=x.shape[1],
        layers=[_linear_layers.layer_argument(*each) for each in zip(layers, outputs, strict=True)],
        residual=_native.matrix_argument(residual),
        weight=norm.weight.data_ptr(),
        bias=norm.bias.data_ptr(),
        eps=norm.eps,
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
        isa=_native.chosen_instruction_set(),
    )
    return SublayerOutput(outputs, out)


def _triton_refuses(
    x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]
) -> str | None:
    return add_norm.refusals(residual, residual, *norm)["triton"] or _triton_encoder.refuses((x, residual))


@sublayer.register(
    "triton",
    unless=_triton_refuses,
    passed_over=lambda x, *_: (
        _triton.passed_over((x,), _triton_encoder.add_norm_agrees)
        or _triton.passed_over((x,), _triton_encoder.bias_gelu_agrees)
    ),
)
def _triton_kernels(
    x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]
) -> SublayerOutput:
    """Products by a library; what follows them by ``kernels/bias_gelu.py`` and ``kernels/add_norm.py``."""
    return _step_by_step("triton", x, layers, residual, norm, keep)


def _step_by_step(
    backend: str, x: Tensor, layers: Sequence[Layer], residual: Tensor, norm: Norm, keep: Sequence[bool]
) -> SublayerOutput:
    outputs = [x]
    for weight, bias in layers[:-1]:
        output = linear(outputs[-1], weight, None)
        bias_gelu_(output, output.new_zeros(len(weight)) if bias is None else bias, backend=backend)
        outputs.append(output)
    outputs.append(linear(outputs[-1], *layers[-1]))
    return SublayerOutput(_kept(outputs[1:], keep), add_norm(outputs[-1], residual, *norm, backend=backend))
