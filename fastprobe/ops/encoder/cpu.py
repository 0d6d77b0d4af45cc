"""Launchers of the C++ kernels of an encoder layer, and the choice between their products and a library's.

A launcher trusts its arguments: float32 on a CPU, columns adjacent, shapes checked. It writes into ``out``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastprobe.ops._dispatch import processors
from fastprobe.ops._dispatch.cpu_library import (
    chosen_instruction_set,
    cpu_library,
    instruction_sets,
    matrix_argument,
)
from fastprobe.ops.encoder.layers import Layer, Norm, Runs

ENOUGH_ROWS = 512
"""Fewest rows for which the C++ products gain what packing the weights costs (benchmarks/NOTES.md)."""


def products_are_faster(rows: int) -> bool:
    """Return whether a sub-layer of this many rows is faster with the C++ products than with a library's.

    Only the AVX-512 products were measured against a library.
    """
    return rows >= ENOUGH_ROWS and processors.family().sublayers and "avx512" in instruction_sets()


def launch_add_norm(x: Tensor, residual: Tensor, norm: Norm, out: Tensor) -> None:
    """Run ``csrc/cpu/rowwise.cpp`` on rows ``(N, D)``, each read from memory once."""
    cpu_library().add_norm(
        x=matrix_argument(x),
        residual=matrix_argument(residual),
        weight=norm.weight.data_ptr(),
        bias=norm.bias.data_ptr(),
        n=len(x),
        width=x.shape[1],
        eps=norm.eps,
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
        isa=chosen_instruction_set(),
    )


def launch_bias_gelu(x: Tensor, bias: Tensor) -> None:
    """Run ``csrc/cpu/rowwise.cpp`` on ``x``, ``(N, D)`` contiguous, in place and in one pass."""
    cpu_library().bias_gelu(
        x=x.data_ptr(),
        bias=bias.data_ptr(),
        n=len(x),
        width=x.shape[1],
        threads=torch.get_num_threads(),
        isa=chosen_instruction_set(),
    )


def launch_varlen_attention(q: Tensor, k: Tensor, v: Tensor, runs: Runs, heads: int, out: Tensor) -> None:
    """Run ``csrc/cpu/attention.cpp``: one task a sequence and head, small enough for a cache."""
    cpu_library().attention(
        q=matrix_argument(q),
        k=matrix_argument(k),
        v=matrix_argument(v),
        runs=list(runs),
        heads=heads,
        width=q.shape[1] // heads,
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
        isa=chosen_instruction_set(),
    )


def launch_attention_sublayer(
    x: Tensor,
    layers: Sequence[Layer],
    outputs: Sequence[Tensor | None],
    runs: Runs,
    heads: int,
    heads_out: Tensor | None,
    norm: Norm,
    out: Tensor,
) -> None:
    """Run ``csrc/cpu/attention_sublayer.cpp``, a block of sequences at a time, small enough for a cache."""
    cpu_library().attention_sublayer(
        x=matrix_argument(x),
        n=len(x),
        depth=x.shape[1],
        runs=list(runs),
        layers=[_layer_argument(*each) for each in zip(layers, outputs, strict=True)],
        heads=heads,
        heads_out=_address(heads_out),
        norm=_norm_argument(norm, out),
        threads=torch.get_num_threads(),
        isa=chosen_instruction_set(),
    )


def launch_ffn_sublayer(
    x: Tensor, layers: Sequence[Layer], outputs: Sequence[Tensor | None], residual: Tensor, norm: Norm, out: Tensor
) -> None:
    """Run ``csrc/cpu/ffn_sublayer.cpp``, a block of rows at a time, small enough for a cache."""
    cpu_library().ffn_sublayer(
        x=matrix_argument(x),
        n=len(x),
        depth=x.shape[1],
        layers=[_layer_argument(*each) for each in zip(layers, outputs, strict=True)],
        residual=matrix_argument(residual),
        norm=_norm_argument(norm, out),
        threads=torch.get_num_threads(),
        isa=chosen_instruction_set(),
    )


def _layer_argument(layer: Layer, out: Tensor | None) -> tuple[tuple[int, int], int, int, int]:
    """Return weight, bias, width and output as the kernels take them; ``None`` is address 0."""
    weight, bias = layer
    return matrix_argument(weight), _address(bias), len(weight), _address(out)


def _norm_argument(norm: Norm, out: Tensor) -> tuple[int, int, float, int]:
    """Return weight, bias, eps and output as the kernels take them."""
    return norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps, out.data_ptr()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
