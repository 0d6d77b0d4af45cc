"""Extend a scan whose moments were kept to more tokens of the same text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastprobe.scan.moment_pass import MomentPass

Batch = Mapping[str, Any]


def extended(
    moment_pass: MomentPass, earlier: Iterable[Batch], stream: Iterator[Batch], read: Callable[[int], object]
) -> Iterator[Batch]:
    """Yield the batches that the moments do not hold yet.

    The last batch of the shorter run may end early, with a sequence that was cut. It is subtracted, and the batch of
    the longer run in its place is yielded.

    Args:
        moment_pass: its moments hold the batches of the shorter run.
        earlier: these batches.
        stream: the batches of the longer run.
        read: called with the tokens of each batch that the moments hold.
    """
    for old in earlier:
        new = next(stream, None)
        if new is not None and _same(old, new):
            read(moment_pass.skip(new))
            continue
        moment_pass.remove(old)
        if new is not None:
            yield new
    yield from stream


def _same(old: Batch, new: Batch) -> bool:
    """Return True if two batches have the same tokens."""
    pairs = [(value, new.get(key)) for key, value in old.items() if isinstance(value, Tensor)]
    return all(isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
