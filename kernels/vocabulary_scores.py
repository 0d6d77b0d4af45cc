"""``vocabulary_scores`` in Triton: log-sum-exp, target logit and top word of a head. No logit is written to memory.

Layout     x is (N, D), the weight (V, D), rows of any stride with adjacent columns. float32 numbers are split into
           bfloat16 planes (``_planes.py``).
Work       one program for BLOCK_N rows and some tiles of BLOCK_V words, one after the other. Programs of the same
           words run at the same time, so that the weight is read from the L2 cache. A program writes four numbers a
           row: the largest logit and its word, the sum of exponentials relative to it, and the logit of the target.
           torch merges those of all programs.
Precision  Products are exact in float32. The tensor core truncates as it adds, so its chains are CHAIN long and are
           summed in float32 outside of it. Neither logits nor sums over words are rounded to 16 bits.
Floor      2 N D V FLOP, six times as many for float32; (N + V) D reads, and for float32 one write and read of three
           bfloat16 planes.

This kernel has never run on a GPU; tests run it in Triton's interpreter and compile it for three architectures.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastprobe.kernels._planes import CHAIN, ONE_LOAD, planes_of, planes_of_product, products_of

PROGRAMS = 4
"""Least number of programs a multiprocessor, if there is enough work: more programs leave fewer idle at the end."""


@dataclass(frozen=True)
class VocabularyConfig:
    """Sizes of the kernel's programs. They never change a result beyond rounding."""

    block_n: int = 128
    block_v: int = 64
    block_d: int = 32
    chain: int = CHAIN
    most_tiles: int = 16  # of words in one program
    num_warps: int = 8
    num_stages: int = 3

    def __post_init__(self):
        assert self.chain % self.block_d == 0
        assert self.chain >= 2 * self.block_d, ONE_LOAD

    def tiles(self, rows: int, words: int, processors: int) -> int:
        """Return the tiles of words of one program: the most that leave enough programs for all processors."""
        programs = triton.cdiv(rows, self.block_n) * triton.cdiv(words, self.block_v)
        return max(1, min(self.most_tiles, programs // (PROGRAMS * processors)))


def configs(capability: tuple[int, int] | None) -> list[VocabularyConfig]:
    """Return the configurations to try on a GPU of this compute capability, default first; ``None``: interpreter."""
    if capability is None:
        return [VocabularyConfig(block_n=32, block_v=32, chain=64, block_d=32)]
    wide = VocabularyConfig(block_v=128, block_d=64)  # except on Hopper it spills registers
    narrow = [VocabularyConfig(), VocabularyConfig(num_stages=2), VocabularyConfig(block_n=64)]
    return [wide, *narrow] if capability[0] == 9 else narrow


@triton.jit(do_not_specialize=["N", "tiles"])
def vocabulary_kernel(
    x_ptr,  # (PLANES, N, D), columns adjacent
    weight_ptr,  # (PLANES, V, D), columns adjacent
    bias_ptr,  # (V,), where BIAS
    target_ptr,  # (N,) int64
    found_ptr,  # (parts, 3, N) float32: largest logit, sum of exponentials relative to it, logit of the target
    top_ptr,  # (parts, N) int32: word of the largest logit
    N,
    D,
    V,
    tiles,
    plane_x,
    stride_x,
    plane_weight,
    stride_weight,
    PLANES: tl.constexpr,
    BIAS: tl.constexpr,
    OPERAND: tl.constexpr,  # dtype of the operands: 16-bit, and float32 in the interpreter
    CHAIN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks = tl.cdiv(N, BLOCK_N)
    part = tl.program_id(0) // blocks
    # int64: offsets may exceed 2^31.
    n = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    counts = n < N
    target = tl.load(target_ptr + n, mask=counts, other=-1)
    of_first, of_second, of_third = products_of(PLANES, PLANES, PLANES)
    products = of_first + of_second + of_third
    most = tl.full((BLOCK_N,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_N,), dtype=tl.float32)
    at_target = tl.zeros((BLOCK_N,), dtype=tl.float32)
    top = tl.zeros((BLOCK_N,), dtype=tl.int32)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, tl.cdiv(V, BLOCK_V))):
        v = tile * BLOCK_V + tl.arange(0, BLOCK_V)
        words = v < V
        logits = tl.zeros((BLOCK_N, BLOCK_V), dtype=tl.float32)
        for step in range(tl.cdiv(D, CHAIN) * products):
            chain = step // products
            i, j = planes_of_product(step - chain * products, of_first, of_second)
            weights = weight_ptr + j.to(tl.int64) * plane_weight + v.to(tl.int64)[:, None] * stride_weight
            rows = x_ptr + i.to(tl.int64) * plane_x + n[:, None] * stride_x
            sums = tl.zeros((BLOCK_N, BLOCK_V), dtype=tl.float32)
            for piece in tl.static_range(CHAIN // BLOCK_D):
                d = chain * CHAIN + piece * BLOCK_D + tl.arange(0, BLOCK_D)
                inside = (d < D)[None, :]
                x = tl.load(rows + d[None, :], mask=counts[:, None] & inside, other=0.0)
                weight = tl.load(weights + d[None, :], mask=words[:, None] & inside, other=0.0)
                sums = tl.dot(x.to(OPERAND), tl.trans(weight.to(OPERAND)), sums)
            logits += sums
        if BIAS:
            logits += tl.load(bias_ptr + v, mask=words, other=0.0).to(tl.float32)[None, :]
        logits = tl.where(words[None, :], logits, float("-inf"))
        at_target += tl.sum(tl.where(v[None, :] == target[:, None], logits, 0.0), 1)
        largest = tl.max(logits, 1)
        first = tl.min(tl.where(logits == largest[:, None], v[None, :], V), 1)
        top = tl.where(largest > most, first, top)
        highest = tl.maximum(most, largest)
        total = total * tl.exp(most - highest) + tl.sum(tl.exp(logits - highest[:, None]), 1)
        most = highest
    out = found_ptr + part.to(tl.int64) * 3 * N + n
    tl.store(out, most, mask=counts)
    tl.store(out + N, total, mask=counts)
    tl.store(out + 2 * N.to(tl.int64), at_target, mask=counts)
    tl.store(top_ptr + part.to(tl.int64) * N + n, top, mask=counts)


def launch_vocabulary_scores(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    processors: int = 1,
    config: VocabularyConfig = VocabularyConfig(),
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel on the current stream. Arguments are already checked.

    Args:
        x: see :func:`fastprobe.ops.vocabulary_scores.vocabulary_scores`.
        weight: the same.
        bias: the same.
        target: the same.
        processors: multiprocessors of the device, all of which get programs: with few rows, each of fewer words.
        config: sizes of the kernel's programs.

    Returns:
        Log-sum-exp, logit of the target and top word, ``(N,)`` each.
    """
    with torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext():
        x_planes, weight_planes = _planes(x), _planes(weight)
        tiles = config.tiles(len(x), len(weight), processors)
        parts = triton.cdiv(len(weight), config.block_v * tiles)
        found = torch.empty(parts, 3, len(x), dtype=torch.float32, device=x.device)
        top = torch.empty(parts, len(x), dtype=torch.int32, device=x.device)
        vocabulary_kernel[(parts * triton.cdiv(len(x), config.block_n),)](
            x_planes,
            weight_planes,
            weight_planes if bias is None else bias.contiguous(),
            target.contiguous(),
            found,
            top,
            len(x),
            x.shape[1],
            len(weight),
            tiles,
            x_planes.stride(0),
            x_planes.stride(1),
            weight_planes.stride(0),
            weight_planes.stride(1),
            PLANES=len(x_planes),
            BIAS=bias is not None,
            OPERAND=tl.float32 if x.device.type == "cpu" else _OPERANDS[x.dtype],
            CHAIN=config.chain,
            BLOCK_N=config.block_n,
            BLOCK_V=config.block_v,
            BLOCK_D=config.block_d,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        most, total, at_target = found.unbind(1)
        highest = most.amax(0)
        log_sum_exp = highest + (total * (most - highest).exp()).sum(0).log()
        first = torch.where(most == highest, top, len(weight) - 1).amin(0)  # a row of NaN has no top word
        return log_sum_exp, at_target.sum(0), first.long()


_OPERANDS = {torch.float32: tl.bfloat16, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def _planes(rows: Tensor) -> Tensor:
    """Return the operands ``(planes, N, D)``: 16-bit rows are their own plane."""
    if rows.dtype == torch.float32:
        return planes_of(rows, 3)
    return (rows if rows.stride(1) == 1 else rows.contiguous())[None]
