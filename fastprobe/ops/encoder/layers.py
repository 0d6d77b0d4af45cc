"""The halves of an encoder's layer: what the operations for them share."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch import cpu_library as _native
from fastprobe.ops.products import linear

Layer = tuple[Tensor, Tensor | None]
"""Weight ``(E, D)`` and bias ``(E,)`` of ``x weight^T + bias``."""

ENOUGH_ROWS = 512
"""For fewer, turning the weights for the C++ kernels costs what they gain (benchmarks/NOTES.md)."""

SLOWER = 1.25
"""So many times a library's time, and the library is taken: less is within what two trials differ by."""


class Norm(NamedTuple):
    """A LayerNorm."""

    weight: Tensor  # (D,)
    bias: Tensor  # (D,)
    eps: float


def check_layer(operation: str, layer: Layer, depth: int, dtype: torch.dtype) -> None:
    """Raises ``ShapeError`` where a layer does not take rows of a width and dtype."""
    weight, bias = layer
    if weight.ndim != 2 or weight.shape[1] != depth or weight.dtype != dtype:
        raise ShapeError(
            f"{operation}: a weight must be (E, {depth}) {dtype} for its input, "
            f"got {tuple(weight.shape)} {weight.dtype}"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != dtype):
        raise ShapeError(
            f"{operation}: a bias must be ({len(weight)},) {dtype} to match its weight, "
            f"got {tuple(bias.shape)} {bias.dtype}"
        )


def check_norm(operation: str, norm: Norm, width: int, dtype: torch.dtype) -> None:
    """Raises ``ShapeError`` where a norm does not take rows of a width and dtype."""
    for name, vector in (("weight", norm.weight), ("bias", norm.bias)):
        if vector.shape != (width,) or vector.dtype != dtype:
            raise ShapeError(
                f"{operation}: the {name} of the norm must be ({width},) {dtype}, "
                f"got {tuple(vector.shape)} {vector.dtype}"
            )


def cpu_refuses(layers: Sequence[Layer], norm: Norm, *rows: Tensor) -> str | None:
    """Why the C++ kernels cannot run layers on these rows, or ``None``."""
    weights = [tensor for layer in layers for tensor in layer if tensor is not None]
    return _native.cpu_refuses_floats([*rows, *weights, norm.weight, norm.bias])


def layer_argument(layer: Layer, out: Tensor | None) -> tuple[tuple[int, int], int, int, int]:
    """A layer as the kernels take it: weight, bias, width, output."""
    weight, bias = layer
    return _native.matrix_argument(weight), address(bias), len(weight), address(out)


def norm_argument(norm: Norm, out: Tensor) -> tuple[int, int, float, int]:
    """A norm as the kernels take it: weight, bias, eps, output."""
    return norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps, out.data_ptr()


def address(tensor: Tensor | None) -> int:
    """0 where there is none."""
    return 0 if tensor is None else tensor.data_ptr()


def are_faster(rows: int) -> bool:
    """Whether the C++ kernels beat the libraries inside torch on so many rows."""
    return rows >= ENOUGH_ROWS and not _libraries_are_faster()


@functools.cache
def _libraries_are_faster() -> bool:
    """Whether the FFN of a small encoder takes the C++ kernels far longer than torch: some milliseconds, once."""
    x = torch.ones(ENOUGH_ROWS, 384)
    up, down = ((torch.ones(e, d), torch.ones(e)) for e, d in ((768, 384), (384, 768)))
    norm, out = Norm(torch.ones(384), torch.ones(384), 1.0), torch.empty(x.shape)
    ours, theirs = [], []
    for _ in range(6):  # in turn, as other processes may come between; the first round is slower
        start = time.perf_counter()
        run_ffn(x, [up, down], [None, None], x, norm, out)
        between = time.perf_counter()
        F.layer_norm(linear(F.gelu(linear(x, *up)), *down) + x, x.shape[1:], *norm)
        ours.append(between - start)
        theirs.append(time.perf_counter() - between)
    return min(ours) > SLOWER * min(theirs)


def run_ffn(
    x: Tensor, layers: Sequence[Layer], outputs: Sequence[Tensor | None], residual: Tensor, norm: Norm, out: Tensor
) -> None:
    """``csrc/cpu/ffn_sublayer.cpp``: block of rows by block, all that lies between in a near cache."""
    _native.cpu_library().ffn_sublayer(
        x=_native.matrix_argument(x),
        n=len(x),
        depth=x.shape[1],
        layers=[layer_argument(*each) for each in zip(layers, outputs, strict=True)],
        residual=_native.matrix_argument(residual),
        norm=norm_argument(norm, out),
        threads=torch.get_num_threads(),
        isa=_native.chosen_instruction_set(),
    )
