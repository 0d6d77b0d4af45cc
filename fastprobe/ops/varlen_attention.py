"""Attention inside each of many sequences of any length that lie side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops import _native
from fastprobe.ops._operation import operation


def _check(q: Tensor, k: Tensor, v: Tensor, runs: Sequence[tuple[int, int]], heads: int) -> None:
    if q.ndim != 2 or heads < 1 or q.shape[1] % heads:
        raise ShapeError(f"varlen_attention: q must be (N, {heads} heads of one width), got {tuple(q.shape)}")
    for name, other in (("k", k), ("v", v)):
        if other.shape != q.shape or other.dtype != q.dtype:
            raise ShapeError(
                f"varlen_attention: {name} must be {tuple(q.shape)} {q.dtype} like q, "
                f"got {tuple(other.shape)} {other.dtype}"
            )
    if sum(count * length for count, length in runs) != len(q):
        raise ShapeError(f"varlen_attention: runs must make up the {len(q)} rows of q, got {list(runs)}")


@operation(check=_check)
def varlen_attention(q: Tensor, k: Tensor, v: Tensor, runs: Sequence[tuple[int, int]], heads: int) -> Tensor:
    """Scaled dot-product attention of every token over the tokens of its own sequence.

        out[n, h] = sum_m softmax_m(q[n, h] . k[m, h] / sqrt(width)) v[m, h]    for m in the sequence of n

    Args:
        q: ``(N, heads * width)``, heads side by side, any floating dtype and strides.
        k: the same.
        v: the same.
        runs: (sequences, length) of each run of sequences of one length, in the order of the rows.
        heads: how many there are.

    Returns:
        ``(N, heads * width)``, contiguous.

    Raises:
        ShapeError: q, k and v differ, or the runs do not add up to their rows.
    """
    if not len(q):
        return torch.empty_like(q)
    sizes = [count * length for count, length in runs]
    out = []
    for run, *parts in zip(runs, *(t.split(sizes) for t in (q, k, v)), strict=True):
        by_head = (part.unflatten(0, run).unflatten(2, (heads, -1)).transpose(1, 2) for part in parts)
        out.append(F.scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(0, 1).flatten(1))
    return torch.cat(out)


def _cpu_refuses(q: Tensor, k: Tensor, v: Tensor, runs: Sequence[tuple[int, int]], heads: int) -> str | None:
    return _native.cpu_refuses_floats((q, k, v))


@varlen_attention.register("cpu", unless=_cpu_refuses)
def _cpu(q: Tensor, k: Tensor, v: Tensor, runs: Sequence[tuple[int, int]], heads: int) -> Tensor:
    """``csrc/cpu/attention.cpp``: one task a sequence and head, all of it in a cache."""
    out = torch.empty(q.shape, dtype=q.dtype)
    _native.cpu_library().attention(
        q=_native.matrix_argument(q),
        k=_native.matrix_argument(k),
        v=_native.matrix_argument(v),
        runs=list(runs),
        heads=heads,
        width=q.shape[1] // heads,
        out=out.data_ptr(),
        threads=torch.get_num_threads(),
        isa=_native.chosen_instruction_set(),
    )
    return out
