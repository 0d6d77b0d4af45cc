"""Refusal of a scan whose moments do not fit in memory, with options that do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from fastprobe.errors import InputError
from fastprobe.models.points import Point
from fastprobe.models.resolve import ModelPoints
from fastprobe.runtime.memory import free_bytes, human
from fastprobe.scan.plan import ScanOptions, ScanPlan

NARROW = ("layer", "attention", "ffn")
"""Elements whose blocks all have the width of the model."""


def check_memory(
    plan: ScanPlan,
    points: ModelPoints,
    widths: Mapping[Point, int],
    device: torch.device,
    allowed: int | None = None,
    why: str = "",
) -> None:
    """Raise if the moments of a plan take more memory than is allowed, or than is free on a device.

    Args:
        plan: the plan.
        points: places of the points in the model.
        widths: width of every point that is read.
        device: device of the moments.
        allowed: bytes that a user names; ``None`` for no limit.
        why: reason why the scan does not go layer by layer, for the message.

    Raises:
        InputError: they do; the message names options whose moments fit.
    """
    need, free = plan.moments.nbytes, free_bytes(device)
    if allowed is not None and (free is None or allowed < free):
        free = allowed
    if free is None or need <= free:
        return
    fitting = []
    for name, options in _smaller(plan.options).items():
        size = ScanPlan.of(points, widths, options).moments.nbytes
        if size <= free:
            fitting.append(f"{name} takes {human(size)}")
    advice = "; ".join(fitting) if fitting else "fewer layers at a time would do"
    raise InputError(
        f"memory: the moments of this scan take {need:,} bytes ({human(need)}) and {human(free)} are free; {advice}"
        f"{f' (batch by batch {why})' if why else ''}"
    )


def _smaller(options: ScanOptions) -> dict[str, ScanOptions]:
    """Return options with smaller moments, by the words that describe them to a user."""
    elements = options.elements
    half_depth = max(1, (1 + max(element.stop for element in elements)) // 2)
    half = tuple(element for element in elements if element.stop <= half_depth)
    narrow = tuple(element for element in elements if element.name in NARROW)
    smaller = {"folds=0": replace(options, folds=0)}
    if half:
        smaller[f"layers 0-{half_depth}"] = replace(options, elements=half)
    if narrow:
        smaller["elements layer, attention, ffn"] = replace(options, elements=narrow)
        smaller["both of folds=0 and these elements"] = replace(options, elements=narrow, folds=0)
    return smaller
