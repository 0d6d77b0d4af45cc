"""Find the fastest configurations of the Triton kernels on this machine's GPU: ``fastprobe bench tune``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from fastprobe.errors import BackendError
from fastprobe.ops.gram import Block, Pair, gram_
from fastprobe.ops.score import score
from fastprobe.ops.tune import tuning

ROWS = 32_768
"""Rows of a batch on a GPU, and of most calls of a scan."""

WIDTHS = (512, 1024, 2048, 4096)
"""Widths of models, one in each class, up to the inner width of an FFN."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def tune(
    widths: Sequence[int] = WIDTHS,
    rows: int = ROWS,
    dtypes: Sequence[torch.dtype] = DTYPES,
    device: torch.device | str = "cuda",
    **timer: Any,
) -> Iterator[dict[str, Any]]:
    """Measure the configurations that were not measured on this device, and save the fastest for later processes.

    Args:
        widths: of x and y; a measurement is for all widths that round up to the same power of two.
        rows: of a call; rounded up in the same way.
        dtypes: of x and y.
        device: the GPU.
        timer: for :func:`fastprobe.ops.tune.tuning`.

    Yields:
        dicts of ``kernel``, ``rows``, ``width``, ``configuration`` (the fastest), ``times_default`` (its speed relative
        to the default) and ``seconds`` by configuration.

    Raises:
        BackendError: torch finds no GPU.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError("bench tune: it measures Triton kernels on a GPU, and this torch sees no GPU")
    for dtype in dtypes:
        for width in widths:
            x, y = (torch.randn(rows, width, device=device).to(dtype) for _ in range(2))
            with tuning(**timer) as found:
                origin = torch.zeros(width, dtype=torch.float64, device=device)
                grams = torch.zeros(2, 1, width, width, dtype=torch.float64, device=device)
                fold = torch.zeros(rows, dtype=torch.int64, device=device)
                pairs = [Pair(0, 0, grams[0]), Pair(0, 1, grams[1])]
                gram_.on("triton")([Block(x, origin), Block(y, origin)], pairs, fold)
                score.on("triton")(x, torch.eye(width, device=device), torch.zeros(width, device=device), y)
            for one in found:
                yield {
                    "kernel": one.kernel,
                    "rows": one.sizes[0],
                    "width": one.sizes[1],
                    "configuration": one.best,
                    "times_default": one.gain,
                    "seconds": one.seconds,
                }
