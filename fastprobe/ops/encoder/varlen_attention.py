"""Attention inside each of many sequences of any length that lie side by side."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch import cpu_library as _native
from fastprobe.ops._dispatch.operation import operation


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


def _cuda_refuses(q: Tensor, k: Tensor, v: Tensor, runs: Sequence[tuple[int, int]], heads: int) -> str | None:
    if q.device.type != "cuda":
        return f"a tensor is on {q.device}, not on a GPU"
    return None if q.dtype == torch.float32 else _flash_refuses(q.dtype, q.shape[1] // heads, q.device)


@varlen_attention.register("cuda", unless=_cuda_refuses)
def _by_offsets(q: Tensor, k: Tensor, v: Tensor, runs: Sequence[tuple[int, int]], heads: int) -> Tensor:
    """All sequences in one launch of what comes with torch, where a loop over lengths would be a hundred small ones."""
    if not len(q):
        return torch.empty_like(q)
    offsets, lengths = _offsets(tuple(runs), q.device), [length for _, length in runs]
    parts = [t.unflatten(1, (heads, -1)) for t in (q, k, v)]
    if q.dtype == torch.float32:  # FlashAttention has no kernel for it
        return _jagged(parts, offsets, min(lengths), max(lengths))
    short, attend = offsets.int(), _flash()
    assert attend is not None
    out: Tensor = attend(*parts, short, short, max(lengths), max(lengths))
    return out.flatten(1)


def _flash_refuses(dtype: torch.dtype, width: int, device: torch.device) -> str | None:
    """Why FlashAttention has no kernel for heads of this width and dtype, or ``None``."""
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it takes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}"
    if width % 8 or width > 256:
        return f"FlashAttention takes heads of multiples of 8 up to 256, not {width}"
    if _flash() is None:
        return "FlashAttention of variable lengths comes with torch 2.10"
    return None if _runs_flash(device) else "FlashAttention does not run on this GPU, or is not in this torch"


@functools.cache
def _runs_flash(device: torch.device) -> bool:
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _flash() -> Callable[..., Any] | None:
    try:
        module = importlib.import_module("torch.nn.attention.varlen")
    except ImportError:
        return None
    attend: Callable[..., Any] = module.varlen_attn
    return attend


def _jagged(parts: Sequence[Tensor], offsets: Tensor, shortest: int, longest: int) -> Tensor:
    """By nested tensors, for which torch has its memory-efficient attention."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors", UserWarning)
        q, k, v = (
            torch.nested.nested_tensor_from_jagged(
                part.contiguous(), offsets, min_seqlen=shortest, max_seqlen=longest
            ).transpose(1, 2)
            for part in parts
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).values().flatten(1)


@functools.lru_cache(maxsize=64)
def _offsets(runs: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Where each sequence begins and the last one ends, int64; kept, for every layer and order of a batch asks."""
    lengths = [0] + [length for count, length in runs for _ in range(count)]
    return torch.tensor(lengths, device=device).cumsum(0)
