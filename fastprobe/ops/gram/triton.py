"""``gram_`` in Triton, as an operator of torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastprobe.ops import tune
from fastprobe.ops._dispatch.triton import capability
from fastprobe.ops.gram.call import GramCall
from fastprobe.ops.gram.trial import error_of_a_trial

GATE = 1e-6
"""Largest error of a trial, of the size of its columns."""


@functools.cache
def gram_agrees(device: torch.device) -> bool:
    """Whether :func:`add_products_` gives torch's sums on a device."""
    return error_of_a_trial(add_products_, device) <= GATE


def add_products_(call: GramCall) -> None:
    """What ``fastprobe.ops.gram_`` does, by the operator below, whose schema knows no pairs and no optional outputs."""
    gram_(
        call.grams,
        [total for total in call.sums if total is not None],
        [total for total in call.squares if total is not None],
        [i for i, total in enumerate(call.sums) if total is not None],
        [i for i, total in enumerate(call.squares) if total is not None],
        call.rows,
        [block for pair in call.pairs for block in pair],
        call.fold,
        call.origins,
        call.weight,
    )


@torch.library.custom_op("fastprobe::triton_gram_", mutates_args=("grams", "sums", "squares"))
def gram_(
    grams: Sequence[Tensor],
    sums: Sequence[Tensor],  # of the blocks in `summed`
    squares: Sequence[Tensor],  # of the blocks in `squared`
    summed: Sequence[int],
    squared: Sequence[int],
    rows: Sequence[Tensor],
    pairs: Sequence[int],  # two blocks each
    fold: Tensor,
    origins: Sequence[Tensor],
    weight: float,
) -> None:
    """``kernels/gram.py`` as an operator of torch."""
    from fastprobe.kernels import gram

    if not len(fold):
        return
    couples = list(zip(pairs[::2], pairs[1::2], strict=True))

    def launch(config: Any, grams: Sequence[Tensor], sums: Sequence[Tensor], squares: Sequence[Tensor]) -> None:
        totals, square_totals = (
            [dict(zip(blocks, given, strict=True)).get(i) for i in range(len(rows))]
            for blocks, given in ((summed, sums), (squared, squares))
        )
        gram.gram_(grams, totals, square_totals, rows, couples, fold, origins, weight=weight, config=config)

    def try_out(config: Any) -> None:
        launch(config, *([torch.zeros_like(out) for out in outs] for outs in (grams, sums, squares)))

    widest = max(block.shape[1] for block in rows)
    dtypes = "/".join(sorted({str(block.dtype).removeprefix("torch.") for block in rows}))
    configs = gram.configs(capability(fold.device))
    config = tune.choose(f"gram_ {dtypes}", (len(fold), widest), fold.device, configs, try_out)
    launch(config, grams, sums, squares)


@gram_.register_fake
def _(*_: Any) -> None:
    return None
