"""The attention half of an encoder's layer: heads, their output, the skip connection and the LayerNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch import cpu_library as _native
from fastprobe.ops._dispatch import triton as _triton
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops.encoder import layers as _linear_layers
from fastprobe.ops.encoder import triton as _triton_encoder
from fastprobe.ops.encoder.add_norm import add_norm
from fastprobe.ops.encoder.layers import Layer, Norm
from fastprobe.ops.encoder.varlen_attention import varlen_attention
from fastprobe.ops.products import linear

Layers = tuple[Layer, Layer, Layer, Layer]
"""Of queries, keys and values, ``(E, D)`` each, and of the output, ``(D, E)``."""

Runs = Sequence[tuple[int, int]]
"""(sequences, length) of each run of sequences of one length, in the order of the rows."""


class AttentionOutput(NamedTuple):
    """What :func:`attention_sublayer` returns."""

    heads: Tensor | None  # (N, E), or None where it was not to be kept
    out: Tensor | None  # (N, D), or None
    state: Tensor  # (N, D)


def _check(x: Tensor, layers: Layers, runs: Runs, heads: int, norm: Norm, keep: tuple[bool, bool]) -> None:
    if x.ndim != 2 or sum(count * length for count, length in runs) != len(x):
        raise ShapeError(f"attention_sublayer: runs must make up the rows of x, {tuple(x.shape)}, got {list(runs)}")
    inner = len(layers[0][0])
    for layer, depth in zip(layers, (x.shape[1],) * 3 + (inner,), strict=True):
        _linear_layers.check_layer("attention_sublayer", layer, depth, x.dtype)
    widths = [len(weight) for weight, _ in layers]
    if widths != [inner] * 3 + [x.shape[1]] or heads < 1 or inner % heads:
        raise ShapeError(
            f"attention_sublayer: queries, keys and values must be {heads} heads of one width, and the output as wide "
            f"as x, {x.shape[1]}; got {widths}"
        )
    _linear_layers.check_norm("attention_sublayer", norm, x.shape[1], x.dtype)


@operation(check=_check)
def attention_sublayer(
    x: Tensor, layers: Layers, runs: Runs, heads: int, norm: Norm, keep: tuple[bool, bool]
) -> AttentionOutput:
    """Attention of every token over its own sequence, its output added to the state, and the LayerNorm of the sum.

        heads = varlen_attention(x Wq^T + bq, x Wk^T + bk, x Wv^T + bv)
        out = heads Wo^T + bo
        state = LayerNorm(out + x)

    Args:
        x: ``(N, D)``, any floating dtype.
        layers: weight and bias (or ``None``) of queries, keys, values and output, of the dtype of ``x``.
        runs: (sequences, length) of each run of sequences of one length, in the order of the rows.
        heads: how many there are.
        norm: weight and bias ``(D,)``, and what is added to the variance.
        keep: whether the heads and whether their output are returned.

    Returns:
        What is to be kept and the state, all in the dtype of ``x``.

    Raises:
        ShapeError: layers, runs or norm do not fit ``x`` or each other.
    """
    inside, out = _by_libraries(x, layers, runs, heads)
    return AttentionOutput(*_kept(inside, out, keep), F.layer_norm(out + x, x.shape[1:], *norm))


def _by_libraries(x: Tensor, layers: Layers, runs: Runs, heads: int) -> tuple[Tensor, Tensor]:
    q, k, v = (linear(x, *layer) for layer in layers[:3])
    inside = varlen_attention(q, k, v, runs, heads)
    return inside, linear(inside, *layers[3])


def _kept(inside: Tensor, out: Tensor, keep: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    return inside if keep[0] else None, out if keep[1] else None


def _cpu_refuses(x: Tensor, layers: Layers, runs: Runs, heads: int, norm: Norm, keep: tuple[bool, bool]) -> str | None:
    return _linear_layers.cpu_refuses(layers, norm, x)


@attention_sublayer.register("cpu", unless=_cpu_refuses)
def _cpu(x: Tensor, layers: Layers, runs: Runs, heads: int, norm: Norm, keep: tuple[bool, bool]) -> AttentionOutput:
    """``csrc/cpu/attention_sublayer.cpp``, all in a near cache, where its products are the faster ones."""
    if not _linear_layers.are_faster(len(x)):
        inside, out = _by_libraries(x, layers, runs, heads)
        return AttentionOutput(*_kept(inside, out, keep), add_norm(out, x, *norm, backend="cpu"))
    inside_kept = x.new_empty(len(x), len(layers[0][0])) if keep[0] else None
    out_kept = torch.empty(x.shape, dtype=x.dtype) if keep[1] else None
    outputs, state = (None, None, None, out_kept), torch.empty(x.shape, dtype=x.dtype)
    _native.cpu_library().attention_sublayer(
        x=_native.matrix_argument(x),
        n=len(x),
        depth=x.shape[1],
        runs=list(runs),
        layers=[_linear_layers.layer_argument(*each) for each in zip(layers, outputs, strict=True)],
        heads=heads,
        heads_out=_linear_layers.address(inside_kept),
        norm=_linear_layers.norm_argument(norm, state),
        threads=torch.get_num_threads(),
        isa=_native.chosen_instruction_set(),
    )
    return AttentionOutput(inside_kept, out_kept, state)


def _triton_refuses(
    x: Tensor, layers: Layers, runs: Runs, heads: int, norm: Norm, keep: tuple[bool, bool]
) -> str | None:
    return add_norm.refusals(x, x, *norm)["triton"]


@attention_sublayer.register(
    "triton",
    unless=_triton_refuses,
    passed_over=lambda x, *_: _triton.passed_over((x,), _triton_encoder.add_norm_agrees),
)
def _by_triton(
    x: Tensor, layers: Layers, runs: Runs, heads: int, norm: Norm, keep: tuple[bool, bool]
) -> AttentionOutput:
    """Products and attention by libraries; what follows them by ``kernels/add_norm.py``."""
    inside, out = _by_libraries(x, layers, runs, heads)
    return AttentionOutput(*_kept(inside, out, keep), add_norm(out, x, *norm, backend="triton"))
