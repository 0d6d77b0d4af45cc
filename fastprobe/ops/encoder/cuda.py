"""Launcher of attention over sequences of any length on a GPU, by the kernels that come with torch.

One launch covers all sequences. A loop over their lengths would be a hundred small launches.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.ops.encoder.layers import Runs


def refuses(q: Tensor, heads: int) -> str | None:
    """Return why torch has no kernel for these queries on a GPU, or ``None``."""
    if q.device.type != "cuda":
        return f"a tensor is on {q.device}, not on a GPU"
    return None if q.dtype == torch.float32 else _flash_refuses(q.dtype, q.shape[1] // heads, q.device)


def launch_varlen_attention(q: Tensor, k: Tensor, v: Tensor, runs: Runs, heads: int) -> Tensor:
    """Run FlashAttention for 16-bit numbers and memory-efficient attention for float32, as ``(N, heads * width)``."""
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
    """Return why FlashAttention has no kernel for heads of this width and dtype, or ``None``."""
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
    """Attend through nested tensors, for which torch has its memory-efficient attention."""
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
    """Return the first row of each sequence and the end of the last, int64; cached for the layers of a batch."""
    lengths = [0] + [length for count, length in runs for _ in range(count)]
    return torch.tensor(lengths, device=device).cumsum(0)
