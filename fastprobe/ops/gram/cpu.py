"""``gram_`` on the C++ kernels: ``csrc/cpu/gram.cpp``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastprobe.ops._dispatch import cpu_library
from fastprobe.ops.gram.api import Block, Pair, gram_, wanted_totals
from fastprobe.ops.gram.layout import address_of, strides_refusal


def _refuses(blocks: Sequence[Block], pairs: Sequence[Pair], fold: Tensor, *, exact: bool = False) -> str | None:
    if exact:
        return "the C++ kernels multiply in float32"
    outputs = [*(pair.gram for pair in pairs), *wanted_totals(blocks)]
    elsewhere = cpu_library.not_on_a_cpu([fold, *outputs, *(block.origin for block in blocks)])
    return elsewhere or strides_refusal(blocks, pairs) or cpu_library.cpu_refuses([block.rows for block in blocks])


@gram_.register("cpu", unless=_refuses)
def launch_gram(blocks: Sequence[Block], pairs: Sequence[Pair], fold: Tensor, *, exact: bool = False) -> None:
    """Add with ``csrc/cpu/gram.cpp``: chains of 128 rows or fewer in registers, 2,048 in float32, the rest in float64.

    Args:
        blocks: see :func:`fastprobe.ops.gram.gram_`; already checked.
        pairs: the same.
        fold: the same.
        exact: always false here.
    """
    origins = [block.origin.float() if block.origin.any() else None for block in blocks]  # alive while C++ reads them
    fold = fold.contiguous()
    cpu_library.cpu_library().gram(
        blocks=[
            (cpu_library.rows_argument(block.rows), address_of(origin), address_of(block.sum), address_of(block.square))
            for block, origin in zip(blocks, origins, strict=True)
        ],
        pairs=[(i, j, gram.data_ptr(), gram.stride(0) if len(gram) > 1 else 0, gram.stride(1)) for i, j, gram in pairs],
        fold=fold.data_ptr(),
        n=len(fold),
        folds=int(fold.max()) + 1 if len(fold) else 0,
        threads=torch.get_num_threads(),
        isa=cpu_library.chosen_instruction_set(),
    )
