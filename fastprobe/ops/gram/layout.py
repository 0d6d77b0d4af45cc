"""Devices and strides of the arguments of ``gram_``: what several backends ask before they take a call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastprobe.ops.gram.api import Block, Pair, wanted_totals


def tensors_of(blocks: Sequence[Block], pairs: Sequence[Pair], fold: Tensor) -> list[Tensor]:
    """Return every tensor of a call, ``fold`` first."""
    inputs = [tensor for block in blocks for tensor in block[:2]]
    return [fold, *(pair.gram for pair in pairs), *wanted_totals(blocks), *inputs]


def strides_refusal(blocks: Sequence[Block], pairs: Sequence[Pair]) -> str | None:
    """Return why kernels cannot write outputs with these strides, or ``None``."""
    if any(pair.gram.stride(2) != 1 for pair in pairs):
        return "the columns of a gram must be adjacent"
    contiguous = all(total.is_contiguous() for total in wanted_totals(blocks))
    return None if contiguous else "sums and squares must be contiguous"


def address_of(tensor: Tensor | None) -> int:
    """Return the address of a tensor's first element, 0 for ``None``."""
    return 0 if tensor is None else tensor.data_ptr()
