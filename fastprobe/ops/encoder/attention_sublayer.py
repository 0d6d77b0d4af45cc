"""Attention half of an encoder layer: heads, output projection, skip connection and LayerNorm."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch.cpu_library import cpu_refuses_floats
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops._dispatch.triton import passed_over
from fastprobe.ops.encoder import cpu, triton
from fastprobe.ops.encoder.add_norm import add_norm
from fastprobe.ops.encoder.layers import Layer, Norm, Runs, check_layer, check_norm, tensors_of
from fastprobe.ops.encoder.varlen_attention import varlen_attention
from fastprobe.ops.products import linear

Layers = tuple[Layer, Layer, Layer, Layer]
"""Layers of queries, keys and values, ``(E, D)`` each, and of the output, ``(D, E)``."""


class AttentionOutput(NamedTuple):
    """Result of :func:`attention_sublayer`."""

    heads: Tensor | None  # (N, E), or None where it was not kept
    out: Tensor | None  # (N, D), or None where it was not kept
    state: Tensor  # (N, D)


def _check(x: Tensor, layers: Layers, runs: Runs, heads: int, norm: Norm, keep: tuple[bool, bool]) -> None:
    if x.ndim != 2 or sum(count * length for count, length in runs) != len(x):
        raise ShapeError(f"attention_sublayer: runs must make up the rows of x, {tuple(x.shape)}, got {list(runs)}")
    inner = len(layers[0][0])
    for layer, depth in zip(layers, (x.shape[1],) * 3 + (inner,), strict=True):
        check_layer("attention_sublayer", layer, depth, x.dtype)
    widths = [len(weight) for weight, _ in layers]
    if widths != [inner] * 3 + [x.shape[1]] or heads < 1 or inner % heads:
        raise ShapeError(
            f"attention_sublayer: queries, keys and values must be {heads} heads of one width, and the output as wide "
            f"as x, {x.shape[1]}; got {widths}"
        )
    check_norm("attention_sublayer", norm, x.shape[1], x.dtype)


@operation(check=_check)
def attention_sublayer(
    x: Tensor, layers: Layers, runs: Runs, heads: int, norm: Norm, keep: tuple[bool, bool]
) -> AttentionOutput:
    """Apply attention within each sequence, add its output to the state, and take the LayerNorm of the sum.

        heads = varlen_attention(x Wq^T + bq, x Wk^T + bk, x Wv^T + bv)
        out = heads Wo^T + bo
        state = LayerNorm(out + x)

    Args:
        x: ``(N, D)``, any floating dtype.
        layers: weight and bias (or ``None``) of queries, keys, values and output, in the dtype of ``x``.
        runs: (sequences, length) of each run of sequences of one length, in the order of the rows.
        heads: number of heads.
        norm: weight and bias ``(D,)``, and what is added to the variance.
        keep: whether to return the heads, and whether to return their output.

    Returns:
        The heads and the output where they are kept, and the state, all in the dtype of ``x``.

    Raises:
        ShapeError: layers, runs or norm do not fit ``x`` or each other.
    """
    inside, out = _by_library(x, layers, runs, heads)
    return AttentionOutput(*_kept(inside, out, keep), F.layer_norm(out + x, x.shape[1:], *norm))


def _by_library(x: Tensor, layers: Layers, runs: Runs, heads: int) -> tuple[Tensor, Tensor]:
    """Return the heads and their output, with a library's products and the fastest attention."""
    q, k, v = (linear(x, *layer) for layer in layers[:3])
    inside = varlen_attention(q, k, v, runs, heads)
    return inside, linear(inside, *layers[3])


def _kept(inside: Tensor, out: Tensor, keep: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    return inside if keep[0] else None, out if keep[1] else None


def _cpu_refuses(x: Tensor, layers: Layers, runs: Runs, heads: int, norm: Norm, keep: tuple[bool, bool]) -> str | None:
    return cpu_refuses_floats([x, *tensors_of(layers, norm)])


@attention_sublayer.register("cpu", unless=_cpu_refuses)
def _on_cpu(x: Tensor, layers: Layers, runs: Runs, heads: int, norm: Norm, keep: tuple[bool, bool]) -> AttentionOutput:
    """Run one C++ kernel, or a library's products and the C++ norm where those are faster."""
    if not cpu.products_are_faster(len(x)):
        inside, out = _by_library(x, layers, runs, heads)
        return AttentionOutput(*_kept(inside, out, keep), add_norm.on("cpu")(out, x, *norm))
    inside_kept = x.new_empty(len(x), len(layers[0][0])) if keep[0] else None
    out_kept = torch.empty(x.shape, dtype=x.dtype) if keep[1] else None
    state = torch.empty(x.shape, dtype=x.dtype)
    cpu.launch_attention_sublayer(x, layers, (None, None, None, out_kept), runs, heads, inside_kept, norm, state)
    return AttentionOutput(inside_kept, out_kept, state)


def _triton_refuses(
    x: Tensor, layers: Layers, runs: Runs, heads: int, norm: Norm, keep: tuple[bool, bool]
) -> str | None:
    return add_norm.refusals(x, x, *norm)["triton"]


@attention_sublayer.register(
    "triton", unless=_triton_refuses, passed_over=lambda x, *_, **__: passed_over((x,), triton.add_norm_agrees)
)
def _on_triton(
    x: Tensor, layers: Layers, runs: Runs, heads: int, norm: Norm, keep: tuple[bool, bool]
) -> AttentionOutput:
    """Run a library's products, the fastest attention, and ``kernels/add_norm.py``."""
    inside, out = _by_library(x, layers, runs, heads)
    return AttentionOutput(*_kept(inside, out, keep), add_norm.on("triton")(out, x, *norm))
