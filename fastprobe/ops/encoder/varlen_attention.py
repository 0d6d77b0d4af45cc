"""Attention within each of many sequences whose rows are adjacent, without padding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch.cpu_library import cpu_refuses_floats
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops.encoder import cpu, cuda
from fastprobe.ops.encoder.layers import Runs


def _check(q: Tensor, k: Tensor, v: Tensor, runs: Runs, heads: int) -> None:
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
def varlen_attention(q: Tensor, k: Tensor, v: Tensor, runs: Runs, heads: int) -> Tensor:
    """Return the scaled dot-product attention of every token over the tokens of its own sequence.

        out[n, h] = sum_m softmax_m(q[n, h] . k[m, h] / sqrt(width)) v[m, h]    for m in the sequence of n

    Args:
        q: ``(N, heads * width)``, heads side by side, any floating dtype and strides.
        k: the same shape and dtype as ``q``.
        v: the same shape and dtype as ``q``.
        runs: (sequences, length) of each run of sequences of one length, in the order of the rows.
        heads: number of heads.

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


def _cpu_refuses(q: Tensor, k: Tensor, v: Tensor, runs: Runs, heads: int) -> str | None:
    return cpu_refuses_floats((q, k, v))


@varlen_attention.register("cpu", unless=_cpu_refuses)
def _on_cpu(q: Tensor, k: Tensor, v: Tensor, runs: Runs, heads: int) -> Tensor:
    out = torch.empty(q.shape, dtype=q.dtype)
    cpu.launch_varlen_attention(q, k, v, runs, heads, out)
    return out


def _cuda_refuses(q: Tensor, k: Tensor, v: Tensor, runs: Runs, heads: int) -> str | None:
    return cuda.refuses(q, heads)


@varlen_attention.register("cuda", unless=_cuda_refuses)
def _on_cuda(q: Tensor, k: Tensor, v: Tensor, runs: Runs, heads: int) -> Tensor:
    return cuda.launch_varlen_attention(q, k, v, runs, heads)
