"""Extend a scan whose moments were kept to more tokens of the same text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from fastprobe.data.checks import attended_mask
from fastprobe.scan.moment_pass import MomentPass


def remove_last(moment_pass: MomentPass, shorter: Iterable[Mapping[str, Any]], done: int) -> int:
    """Subtract the last batch of a shorter run from its moments, and return the number of batches that they then hold.

    That batch may have ended early, with a sequence that was cut. The longer run has another one in its place.

    Args:
        moment_pass: its moments hold the shorter run.
        shorter: the batches of the shorter run.
        done: number of batches that the moments hold.
    """
    last = None
    for batch in itertools.islice(shorter, done):
        last = batch
        moment_pass.sequences += len(attended_mask(batch))
    if last is None:
        return 0
    moment_pass.sequences -= len(attended_mask(last))
    moment_pass.batches = done - 1
    moment_pass.remove(last)
    return done - 1
