"""``gram_`` on the Triton kernels: ``kernels/gram.py``, as an operator of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastprobe.ops import tune
from fastprobe.ops._dispatch import triton as dispatch
from fastprobe.ops._dispatch.capture import capturing
from fastprobe.ops.gram.api import Block, Pair, gram_
from fastprobe.ops.gram.layout import strides_refusal, tensors_of
from fastprobe.ops.gram.origins import moved_by
from fastprobe.ops.gram.trial import error_of_a_trial

GATE = 1e-6
"""Largest error of a trial, relative to the norms of the columns."""


def _refuses(blocks: Sequence[Block], pairs: Sequence[Pair], fold: Tensor, *, exact: bool = False) -> str | None:
    if exact:
        return "it multiplies planes of bfloat16"
    rows = [block.rows for block in blocks]
    return strides_refusal(blocks, pairs) or dispatch.refuses(tensors_of(blocks, pairs, fold), rows)


def _passed_over(blocks: Sequence[Block], pairs: Sequence[Pair], fold: Tensor, *, exact: bool = False) -> bool:
    return dispatch.passed_over([fold], gram_agrees)


def gram_agrees(device: torch.device) -> bool:
    """Return whether :func:`launch_gram` gives torch's sums on a device."""
    return error_of_a_trial(launch_gram, device) <= GATE


@gram_.register("triton", unless=_refuses, passed_over=_passed_over)
def launch_gram(blocks: Sequence[Block], pairs: Sequence[Pair], fold: Tensor, *, exact: bool = False) -> None:
    """Add with ``kernels/gram.py``: 16-bit rows as they are, others as planes of bfloat16; chains of 128 rows.

    Args:
        blocks: see :func:`fastprobe.ops.gram.gram_`; already checked.
        pairs: the same.
        fold: the same.
        exact: always false here.
    """
    gram_operator(
        [block.rows for block in blocks],
        [block.origin for block in blocks],
        [block.sum for block in blocks if block.sum is not None],
        [block.square for block in blocks if block.square is not None],
        [b for b, block in enumerate(blocks) if block.sum is not None],
        [b for b, block in enumerate(blocks) if block.square is not None],
        [pair.gram for pair in pairs],
        [b for pair in pairs for b in pair[:2]],
        fold,
    )


@torch.library.custom_op("fastprobe::triton_gram", mutates_args=("sums", "squares", "grams"))
def gram_operator(
    rows: Sequence[Tensor],
    origins: Sequence[Tensor],
    sums: Sequence[Tensor],
    squares: Sequence[Tensor],
    summed: Sequence[int],
    squared: Sequence[int],
    grams: Sequence[Tensor],
    factors: Sequence[int],
    fold: Tensor,
) -> None:
    """Run :func:`launch_gram` as an operator of torch, whose schema has neither tuples nor optional outputs.

    Args:
        rows: of each block.
        origins: of each block.
        sums: of the blocks in ``summed``.
        squares: of the blocks in ``squared``.
        summed: the blocks whose sums are wanted.
        squared: the blocks whose squares are wanted.
        grams: of each pair.
        factors: the two blocks of each pair, pair after pair.
        fold: of each row.
    """
    from fastprobe.kernels import gram as kernels

    if not len(fold):
        return

    halves = all(block.dtype in (torch.bfloat16, torch.float16) for block in rows)
    zero_origins = halves and not capturing(fold.device) and not any(len(moved_by(o).columns) for o in origins)

    def launch(config: Any, sums: Sequence[Tensor], squares: Sequence[Tensor], grams: Sequence[Tensor]) -> None:
        sum_of, square_of = dict(zip(summed, sums, strict=True)), dict(zip(squared, squares, strict=True))
        totals = map(sum_of.get, range(len(rows))), map(square_of.get, range(len(rows)))
        blocks = list(zip(rows, origins, *totals, strict=True))
        pairs = list(zip(factors[::2], factors[1::2], grams, strict=True))
        kernels.launch_gram(blocks, pairs, fold, config=config, zero_origins=zero_origins)

    def try_out(config: Any) -> None:
        launch(config, *([torch.zeros_like(out) for out in outs] for outs in (sums, squares, grams)))

    widest = max(block.shape[1] for block in rows)
    dtypes = "/".join(sorted({str(block.dtype).removeprefix("torch.") for block in rows}))
    configs = kernels.configs(dispatch.capability(fold.device))
    config = tune.choose(f"gram_ {dtypes}", (len(fold), widest), fold.device, configs, try_out)
    launch(config, sums, squares, grams)


@gram_operator.register_fake
def _(*_: Any) -> None:
    return None
