"""Planes: bfloat16 numbers whose sum is a float32 number, and whose products a tensor core computes without rounding.

Three planes hold all 24 bits of a float32 number, two planes those of a float16 number. Only products of planes i and j
with i + j < 3 are computed: the others are below 2^-26 of the product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHAIN = 128
"""Products that the tensor core sums before the sum is rounded to nearest (tests/ops/gram/test_accumulation.py).

The tensor core rounds toward zero, so that a sum of positive terms is low, and lower the longer the chain.

A chain must be cut into two loads or more. Triton's compiler rewrites ``total + dot(x, y, 0)`` as ``dot(x, y, total)``,
and a chain of one load would continue the chain before it. It keeps ``total + dot(x2, y2, dot(x1, y1, 0))``.
"""

ONE_LOAD = "a chain must be cut into two loads or more: see CHAIN in kernels/_planes.py"

NEEDED = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
"""Planes that hold every bit of a number."""


@triton.jit
def to_bfloat16(x):
    """Return float32 numbers rounded to bfloat16, to nearest with ties to even; still float32."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def products_of(left, right, MOST: tl.constexpr):
    """Return the number of products whose left plane is the first, the second and the third one.

    Args:
        left: planes of the left number.
        right: of the right one.
        MOST: planes i and j are multiplied where i + j < MOST.
    """
    first = tl.minimum(right, MOST)
    second = tl.where(left > 1, tl.minimum(right, MOST - 1), 0)
    third = tl.where(left > 2, tl.minimum(right, MOST - 2), 0)
    return first, second, third


@triton.jit
def planes_of_product(product, first, second):
    """Return the left and the right plane of a product, given the numbers of products of the first two left planes."""
    left = (product >= first).to(tl.int32) + (product >= first + second).to(tl.int32)
    return left, product - tl.where(left > 0, first, 0) - tl.where(left > 1, second, 0)


@triton.jit(do_not_specialize=["N"])
def _planes_kernel(
    rows_ptr,  # (N, D)
    planes_ptr,  # (COUNT, N, width) bfloat16
    N,
    D,
    width,
    stride_n,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n, d = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    left = tl.load(rows_ptr + n * stride_n + d, mask=d < D, other=0.0).to(tl.float32)
    for plane in tl.static_range(COUNT):
        here = to_bfloat16(left)
        tl.store(planes_ptr + (plane * N.to(tl.int64) + n) * width + d, here.to(tl.bfloat16), mask=d < width)
        left = left - here


def planes_of(rows: Tensor, count: int) -> Tensor:
    """Return the first planes of a matrix ``(N, D)``: ``(count, N, width)`` bfloat16.

    The width is D rounded up to a multiple of 16, with zeros. One plane of bfloat16 rows is the rows themselves.
    """
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    if count == 1 and rows.dtype == torch.bfloat16:
        return rows[None]
    n, d = rows.shape
    planes = torch.empty(count, n, triton.cdiv(d, 16) * 16, dtype=torch.bfloat16, device=rows.device)
    block = min(1024, triton.next_power_of_2(planes.shape[2]))
    grid = (n, triton.cdiv(planes.shape[2], block))
    _planes_kernel[grid](rows, planes, n, d, planes.shape[2], rows.stride(0), COUNT=count, BLOCK=block)
    return planes
