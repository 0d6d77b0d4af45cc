"""Linear layers in C++: what the operations made of them share."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from fastprobe.errors import ShapeError
from fastprobe.ops import _native
from fastprobe.ops._platform import linear

Layer = tuple[Tensor, Tensor | None]
"""Weight ``(E, D)`` and bias ``(E,)`` of ``x weight^T + bias``."""

FEWEST_ROWS = 64
"""That the C++ kernels take: ``csrc/cpu/linear.h``."""

ENOUGH_ROWS = 512
"""For fewer, turning the weights for the C++ kernel takes what it gains (benchmarks/NOTES.md)."""

SLOWER = 1.1
"""So many times a library's time and ``auto`` takes the library: less is within what two probes differ by."""


def check(operation: str, x: Tensor, layer: Layer) -> None:
    """Raises ``ShapeError`` where a layer does not take ``x``."""
    weight, bias = layer
    if x.ndim != 2 or weight.ndim != 2 or weight.shape[1] != x.shape[1] or weight.dtype != x.dtype:
        raise ShapeError(
            f"{operation}: a weight must be (E, D) for x of (N, D), of its dtype; got {tuple(weight.shape)} "
            f"{weight.dtype} for {tuple(x.shape)} {x.dtype}"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype):
        raise ShapeError(
            f"{operation}: a bias must be ({len(weight)},) {x.dtype} to match its weight, "
            f"got {tuple(bias.shape)} {bias.dtype}"
        )


def cpu_refuses(x: Tensor, layers: Sequence[Layer], others: Sequence[Tensor] = ()) -> str | None:
    """Why the C++ kernels cannot run layers on these rows, or ``None``."""
    return _native.cpu_refuses_floats([x, *others, *(t for layer in layers for t in layer if t is not None)])


def are_faster(rows: int) -> bool:
    """Whether the C++ kernels beat the libraries inside torch on so many rows."""
    return rows >= ENOUGH_ROWS and not _libraries_are_faster()


def layer_argument(layer: Layer, out: Tensor | None) -> tuple[tuple[int, int], int, int, int]:
    """A layer as the kernels take it: weight, bias, width, output."""
    weight, bias = layer
    return (
        _native.matrix_argument(weight),
        0 if bias is None else bias.data_ptr(),
        len(weight),
        0 if out is None else out.data_ptr(),
    )


def project(x: Tensor, layers: Sequence[Layer]) -> list[Tensor]:
    """``csrc/cpu/projections.cpp``: rows in blocks that stay in a cache, weights in panels."""
    out = [torch.empty(len(x), len(weight), dtype=x.dtype) for weight, _ in layers]
    _native.cpu_library().projections(
        x=_native.matrix_argument(x),
        n=len(x),
        depth=x.shape[1],
        layers=[layer_argument(*each) for each in zip(layers, out, strict=True)],
        threads=torch.get_num_threads(),
        isa=_native.chosen_instruction_set(),
    )
    return out


@functools.cache
def _libraries_are_faster() -> bool:
    """Whether a product of a small encoder takes the C++ kernel far longer than torch: some milliseconds, once."""
    x, layer = torch.ones(ENOUGH_ROWS, 384), (torch.ones(384, 384), torch.ones(384))
    ours, theirs = [], []
    for _ in range(8):  # in turn, as other processes may come between; the first round is slower
        start = time.perf_counter()
        project(x, [layer])
        between = time.perf_counter()
        linear(x, *layer)
        ours.append(between - start)
        theirs.append(time.perf_counter() - between)
    return min(ours) > SLOWER * min(theirs)
