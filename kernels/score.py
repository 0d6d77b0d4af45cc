"""``score`` in Triton: compare an affine map ``p = x W + b`` with y row by row; p is never written to memory.

Layout     x is (N, D), y (N, K), rows of any stride with adjacent columns. W, and x unless it is bfloat16, are split
           into bfloat16 planes (``_planes.py``).
Work       one program for BLOCK_N rows and BLOCK_K columns of y. Programs of the same rows run at the same time, so
           that x and W are read from the L2 cache. A program writes four sums a row; torch adds those of all tiles.
Precision  Products of planes are exact in float32. The tensor core truncates as it adds, so its chains are CHAIN long
           and are summed in float32 outside of it. The error is summed from y - p, not from the other three sums.
Floor      2 N D K FLOP for each product of planes, 3 for bfloat16 rows, 5 for float16, 6 for float32; N (D + K) reads,
           and one write and read of the planes of rows that are not bfloat16.

This kernel has never run on a GPU; tests run it in Triton's interpreter and compile it for three architectures.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastprobe.kernels._planes import CHAIN, NEEDED, ONE_LOAD, planes_of, planes_of_product, products_of


@dataclass(frozen=True)
class ScoreConfig:
    """Sizes of the kernel's programs. They never change a result beyond rounding."""

    block_n: int = 128
    block_k: int = 64
    block_d: int = 64
    chain: int = CHAIN
    num_warps: int = 8
    num_stages: int = 3

    def __post_init__(self):
        assert self.chain % self.block_d == 0
        assert self.chain >= 2 * self.block_d, ONE_LOAD


def configs(capability: tuple[int, int] | None) -> list[ScoreConfig]:
    """Return the configurations to try on a GPU of this compute capability, default first; ``None``: interpreter.

    They differ in how far ahead rows are fetched, so that the choice never changes a bit of a result.
    """
    if capability is None:
        return [ScoreConfig(block_n=64)]
    return [ScoreConfig(), ScoreConfig(num_stages=2), ScoreConfig(num_stages=4)]


@triton.jit(do_not_specialize=["N"])
def score_kernel(
    x_ptr,  # (X_PLANES, N, D), columns adjacent
    w_ptr,  # (3, D, columns), contiguous
    intercept_ptr,  # (K,) float32
    y_ptr,  # (N, K), columns adjacent
    sums_ptr,  # (tiles of K, 4, N) float32: sums of p y, p^2, y^2, (y - p)^2 over the columns of a tile
    residual_ptr,  # (N, K) float32: y - p, where RESIDUAL
    N,
    D,
    K,
    columns,
    plane_x,
    stride_x,
    stride_y,
    X_PLANES: tl.constexpr,
    RESIDUAL: tl.constexpr,
    OPERAND: tl.constexpr,  # dtype of the operands: bfloat16, and float32 in the interpreter
    CHAIN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    many = tl.cdiv(K, BLOCK_K)
    tile = tl.program_id(0) % many
    # int64: offsets may exceed 2^31.
    n = (tl.program_id(0) // many).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    counts = (n < N)[:, None]
    x_rows = x_ptr + n[:, None] * stride_x
    of_first, of_second, of_third = products_of(X_PLANES, 3, 3)
    products = of_first + of_second + of_third
    p = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    for step in range(tl.cdiv(D, CHAIN) * products):
        chain = step // products
        i, j = planes_of_product(step - chain * products, of_first, of_second)
        part = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
        for piece in tl.static_range(CHAIN // BLOCK_D):
            d = chain * CHAIN + piece * BLOCK_D + tl.arange(0, BLOCK_D)
            x = tl.load(x_rows + i.to(tl.int64) * plane_x + d[None, :], mask=counts & (d < D)[None, :], other=0.0)
            w_rows = w_ptr + (j.to(tl.int64) * D + d)[:, None] * columns
            w = tl.load(w_rows + k[None, :], mask=(d < D)[:, None] & (k < columns)[None, :], other=0.0)
            part = tl.dot(x.to(OPERAND), w.to(OPERAND), part)
        p += part
    p += tl.load(intercept_ptr + k, mask=k < K, other=0.0)[None, :]
    inside = counts & (k < K)[None, :]
    y = tl.load(y_ptr + n[:, None] * stride_y + k[None, :], mask=inside, other=0.0).to(tl.float32)
    left = y - p
    if RESIDUAL:
        tl.store(residual_ptr + n[:, None] * K + k[None, :], left, mask=inside)
    out = sums_ptr + tile.to(tl.int64) * 4 * N + n
    tl.store(out, tl.sum(p * y, 1), mask=n < N)
    tl.store(out + N, tl.sum(p * p, 1), mask=n < N)
    tl.store(out + 2 * N.to(tl.int64), tl.sum(y * y, 1), mask=n < N)
    tl.store(out + 3 * N.to(tl.int64), tl.sum(left * left, 1), mask=n < N)


def launch_score(
    x: Tensor,
    coef: Tensor,
    intercept: Tensor,
    y: Tensor,
    residual: Tensor | None = None,
    *,
    config: ScoreConfig = ScoreConfig(),
) -> Tensor:
    """Launch the kernel on the current stream. Arguments are already checked.

    Args:
        x: see :func:`fastprobe.ops.score.score`.
        coef: the same.
        intercept: the same.
        y: the same.
        residual: ``(N, K)`` float32, filled with y - p.
        config: sizes of the kernel's programs.

    Returns:
        The four sums of every row, ``(4, N)`` float32.
    """
    with torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext():
        x_planes = planes_of(x, NEEDED[x.dtype])
        w_planes = planes_of(coef.float(), 3)
        y = y if y.stride(1) == 1 else y.contiguous()
        tiles = triton.cdiv(y.shape[1], config.block_k)
        sums = torch.empty(tiles, 4, len(x), dtype=torch.float32, device=x.device)
        score_kernel[(tiles * triton.cdiv(len(x), config.block_n),)](
            x_planes,
            w_planes,
            intercept.float().contiguous(),
            y,
            sums,
            sums if residual is None else residual,
            len(x),
            x.shape[1],
            y.shape[1],
            w_planes.shape[2],
            x_planes.stride(0),
            x_planes.stride(1),
            y.stride(0),
            X_PLANES=len(x_planes),
            RESIDUAL=residual is not None,
            OPERAND=tl.float32 if x.device.type == "cpu" else tl.bfloat16,
            CHAIN=config.chain,
            BLOCK_N=config.block_n,
            BLOCK_K=config.block_k,
            BLOCK_D=config.block_d,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        return sums.sum(0)
