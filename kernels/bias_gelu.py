"""``bias_gelu_`` in Triton: the GELU of a matrix plus a bias, in place.

Layout     x is (N, D), rows of any stride with adjacent columns.
Work       one program for ROWS rows and BLOCK_D columns, element by element.
Precision  Sum and GELU are float32, so a 16-bit number is rounded once, at the end. ``1 + erf`` cancels where z is far
           below 0, with an error of 6e-8 z, as in torch.
Floor      N D reads and writes.

This kernel has never run on a GPU; tests run it in Triton's interpreter and compile it for three architectures.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class BiasGeluConfig:
    """Sizes of the kernel's programs. They never change a result."""

    rows: int = 4
    block_d: int = 512
    num_warps: int = 4


def configs(capability: tuple[int, int] | None) -> list[BiasGeluConfig]:
    """Return the configurations to try on a GPU of this compute capability, default first; ``None``: interpreter."""
    if capability is None:
        return [BiasGeluConfig()]
    return [BiasGeluConfig(), BiasGeluConfig(rows=1, block_d=1024), BiasGeluConfig(rows=8, num_warps=8)]


@triton.jit(do_not_specialize=["N"])
def bias_gelu_kernel(
    x_ptr,  # (N, D), columns adjacent
    bias_ptr,  # (D,)
    N,
    D,
    stride_x,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # int64: N D may pass 2^31
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    inside = (n < N) & (d < D)
    here = x_ptr + n * stride_x + d
    z = tl.load(here, mask=inside, other=0.0).to(tl.float32)
    z += tl.load(bias_ptr + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(here, 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476)), mask=inside)


def launch_bias_gelu(x: Tensor, bias: Tensor, *, config: BiasGeluConfig = BiasGeluConfig()) -> None:
    """Launch the kernel, which replaces ``x`` by the GELU of ``x + bias``. Arguments are already checked."""
    with torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext():
        n, d = x.shape
        block_d = min(config.block_d, triton.next_power_of_2(d))
        bias_gelu_kernel[(triton.cdiv(n, config.rows), triton.cdiv(d, block_d))](
            x,
            bias.contiguous(),
            n,
            d,
            x.stride(0),
            ROWS=config.rows,
            BLOCK_D=block_d,
            num_warps=config.num_warps,
        )
