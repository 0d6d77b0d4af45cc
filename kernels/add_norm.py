"""``add_norm`` in Triton: the LayerNorm of the sum of two states, row by row; the sum is never written to memory.

Layout     x and residual are (N, D), rows of any stride with adjacent columns; out is (N, D), contiguous.
Work       one program for ROWS whole rows, which stay in registers.
Precision  Sum, mean and variance are float32; the variance is computed from the centred rows; out is rounded once.
Floor      2 N D reads, N D writes.

This kernel has never run on a GPU; tests run it in Triton's interpreter and compile it for three architectures.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class AddNormConfig:
    """Sizes of the kernel's programs. They never change a result beyond rounding."""

    rows: int = 1
    numbers: int = 8  # of a program's rows a thread has: 16 bytes of 16-bit ones

    def warps(self, block_d: int) -> int:
        """Return the warps of a program whose rows are padded to ``block_d`` columns."""
        return max(1, min(16, self.rows * block_d // (32 * self.numbers)))


def configs(capability: tuple[int, int] | None) -> list[AddNormConfig]:
    """Return the configurations to try on a GPU of this compute capability, default first; ``None``: interpreter."""
    if capability is None:
        return [AddNormConfig(rows=4)]
    return [AddNormConfig(), AddNormConfig(rows=4), AddNormConfig(numbers=16), AddNormConfig(rows=4, numbers=32)]


@triton.jit(do_not_specialize=["N"])
def add_norm_kernel(
    x_ptr,  # (N, D), columns adjacent
    residual_ptr,  # (N, D), columns adjacent
    weight_ptr,  # (D,)
    bias_ptr,  # (D,)
    out_ptr,  # (N, D)
    N,
    D,
    stride_x,
    stride_residual,
    eps,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # int64: N D may pass 2^31
    d = tl.arange(0, BLOCK_D)[None, :]
    inside = (n < N) & (d < D)
    x = tl.load(x_ptr + n * stride_x + d, mask=inside, other=0.0).to(tl.float32)
    total = x + tl.load(residual_ptr + n * stride_residual + d, mask=inside, other=0.0).to(tl.float32)
    off = tl.where(inside, total - tl.sum(total, 1, keep_dims=True) / D, 0.0)
    scale = tl.rsqrt(tl.sum(off * off, 1, keep_dims=True) / D + eps)
    weight = tl.load(weight_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out_ptr + n * D + d, off * scale * weight + bias, mask=inside)


def launch_add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    config: AddNormConfig = AddNormConfig(),
) -> Tensor:
    """Launch the kernel; return the LayerNorm of ``x + residual``, ``(N, D)`` in the dtype of x.

    Arguments are already checked.
    """
    with torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext():
        x, residual = (rows if rows.stride(1) == 1 else rows.contiguous() for rows in (x, residual))
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        block_d = triton.next_power_of_2(x.shape[1])
        add_norm_kernel[(triton.cdiv(len(x), config.rows),)](
            x,
            residual,
            weight.contiguous(),
            bias.contiguous(),
            out,
            len(x),
            x.shape[1],
            x.stride(0),
            residual.stride(0),
            eps,
            ROWS=config.rows,
            BLOCK_D=block_d,
            num_warps=config.warps(block_d),
        )
        return out
