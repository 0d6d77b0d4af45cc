"""``unit_sum`` in Triton: the sum of rows over their norms, and a count of rows that are not finite, in one read.

Layout     rows are (N, D), of any stride with adjacent columns.
Work       programs take adjacent rows, ROWS at a time, which stay in registers between the norm and the sum. The caller
           adds the sums of the programs, so the same input gives the same bits.
Precision  Norms are float32, sums of unit rows float64.
Floor      N D reads.

This kernel has never run on a GPU; tests run it in Triton's interpreter and compile it for three architectures.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastprobe.kernels._schedule import multiprocessors

PROGRAMS = 4
"""Programs of a multiprocessor."""


@dataclass(frozen=True)
class UnitSumConfig:
    """Sizes of the kernel's programs. They never change a result beyond rounding."""

    numbers: int = 4096  # of the rows that are in registers at the same time
    num_warps: int = 8

    def rows(self, block_d: int) -> int:
        """Return the rows that are read at the same time, padded to ``block_d`` columns."""
        return max(1, self.numbers // block_d)

    def warps(self, block_d: int) -> int:
        """Return the warps of a program: more for rows that do not fit into those of others."""
        return max(self.num_warps, min(16, block_d // 1024))


@triton.jit(do_not_specialize=["N", "LENGTH"])
def unit_sum_kernel(
    rows_ptr,  # (N, D), columns adjacent
    valid_ptr,  # (N,) bool
    sums_ptr,  # (programs, D) float64
    tallies_ptr,  # (programs, 2) int64: rows in the sum, rows that are not finite
    N,
    D,
    stride_n,
    LENGTH,  # rows of a program
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)[None, :]
    first = program * LENGTH
    last = tl.minimum(first + LENGTH, N)
    total = tl.zeros((ROWS, BLOCK_D), dtype=tl.float64)
    counted = tl.zeros((ROWS, 1), dtype=tl.int32)
    broken = tl.zeros((ROWS, 1), dtype=tl.int32)
    for start in range(first, last, ROWS):
        n = start + tl.arange(0, ROWS)[:, None]
        valid = tl.load(valid_ptr + n, mask=n < last, other=0) != 0
        x = tl.load(rows_ptr + n * stride_n + d, mask=valid & (d < D), other=0.0).to(tl.float32)
        norm = tl.sqrt(tl.sum(x * x, 1, keep_dims=True))
        finite = norm < float("inf")  # false for a NaN
        counts = finite & (norm > 0)
        total += tl.where(counts, x / tl.where(counts, norm, 1.0), 0.0).to(tl.float64)
        counted += counts.to(tl.int32)
        broken += (finite == 0).to(tl.int32)
    column = tl.arange(0, BLOCK_D)
    tl.store(sums_ptr + program * D + column, tl.sum(total, 0), mask=column < D)
    tl.store(tallies_ptr + 2 * program, tl.sum(tl.sum(counted, 0), 0).to(tl.int64))
    tl.store(tallies_ptr + 2 * program + 1, tl.sum(tl.sum(broken, 0), 0).to(tl.int64))


def launch_unit_sum(
    rows: Tensor, valid: Tensor, *, config: UnitSumConfig = UnitSumConfig()
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel; return the sum ``(D,)``, the number of rows in it, and true if every valid row is finite.

    Arguments are already checked. Nothing waits for the device.
    """
    device, (n, width) = rows.device, rows.shape
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        rows = rows if rows.stride(1) == 1 else rows.contiguous()
        block_d = triton.next_power_of_2(width)
        step = config.rows(block_d)
        length = triton.cdiv(triton.cdiv(n, PROGRAMS * multiprocessors(device)), step) * step
        programs = triton.cdiv(n, length)
        sums = torch.empty(programs, width, dtype=torch.float64, device=device)
        tallies = torch.empty(programs, 2, dtype=torch.int64, device=device)
        unit_sum_kernel[(programs,)](
            rows, valid.contiguous(), sums, tallies, n, width, rows.stride(0), length,
            ROWS=step, BLOCK_D=block_d, num_warps=config.warps(block_d),
        )  # fmt: skip
        counted, broken = tallies.sum(0)
        return sums.sum(0), counted, broken == 0
