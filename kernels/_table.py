"""Write numbers to the device without a copy from the host, so that a CUDA graph may capture it.

A copy reads host memory, which may be gone when the graph is replayed. Arguments of a kernel are part of the graph.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BATCH = 32
"""Numbers of one launch."""

_OFFSET = 2**62 + 1
"""Each number n is passed as 2 n + _OFFSET: an odd int64, as Triton compiles another kernel for multiples of 16."""


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
    """Return numbers, of size below 2^60, as an int64 tensor whose length is a multiple of ``BATCH``."""
    padded = numbers + [0] * (-len(numbers) % BATCH)
    out = torch.empty(len(padded), dtype=torch.int64, device=device)
    for start in range(0, len(padded), BATCH):
        values = tuple(2 * number + _OFFSET for number in padded[start : start + BATCH])
        _write_kernel[(1,)](out[start:], values, BATCH=BATCH, OFFSET=_OFFSET)
    return out
