"""Numbers on the device, without a copy from the host: a CUDA graph may hold what is launched here.

A copy would have to read host memory that is still there when the graph runs again; arguments of a kernel are in it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BATCH = 32
"""Numbers that one launch writes."""

_OFFSET = 2**62 + 1
"""A number n travels as 2 n + _OFFSET: always int64, and odd, or Triton would compile a kernel for multiples of 16."""


@triton.jit
def _write_kernel(
    table_ptr,  # int64
    values,  # BATCH of them
    BATCH: tl.constexpr,
    OFFSET: tl.constexpr,
):
    for i in tl.static_range(BATCH):
        tl.store(table_ptr + i, (values[i] - OFFSET) >> 1)


def table(numbers: list[int], device: torch.device) -> Tensor:
    """The numbers, each below 2^60 in size, as an int64 tensor whose length is a multiple of ``BATCH``."""
    padded = numbers + [0] * (-len(numbers) % BATCH)
    out = torch.empty(len(padded), dtype=torch.int64, device=device)
    for start in range(0, len(padded), BATCH):
        values = tuple(2 * number + _OFFSET for number in padded[start : start + BATCH])
        _write_kernel[(1,)](out[start:], values, BATCH=BATCH, OFFSET=_OFFSET)
    return out
