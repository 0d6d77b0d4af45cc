"""The kernels in Triton: whether they can run here, in which configuration, and as operators of torch.

As operators, with an implementation for shapes alone, they go through ``torch.compile`` as they are, and into CUDA
graphs: after one call with the same widths, launching them neither waits for the device nor copies to it.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastprobe.errors import BackendError
from fastprobe.ops import _tuning
from fastprobe.ops._gram_call import GramCall
from fastprobe.ops._platform import may_wait_for
from fastprobe.ops._trial import error_of_a_trial

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

OLDEST = (8, 0)
"""Compute capability: the first with bfloat16 in its tensor cores."""

GATE = 1e-6
"""Largest error of a trial, of the size of its columns."""

RESIDUAL_ROWS = 65_536
"""Rows whose residuals are in memory at once."""


def interpreted() -> bool:
    """Whether Triton, when it is imported, runs kernels on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def refuses(tensors: Iterable[Tensor], rows: Iterable[Tensor]) -> str | None:
    """Why the kernels cannot run on these tensors, of which some are rows, or ``None``."""
    for block in rows:
        if block.dtype not in DTYPES:
            return f"it takes bfloat16, float16 and float32 rows, not {str(block.dtype).removeprefix('torch.')}"
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        return f"tensors are on several devices: {', '.join(sorted(map(str, devices)))}"
    (device,) = devices
    if device.type == "cpu" and not interpreted():
        return "a tensor is on cpu; in Triton's interpreter, for tests: TRITON_INTERPRET=1"
    if device.type not in ("cpu", "cuda"):
        return f"a tensor is on {device}, not on an NVIDIA GPU"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; `pip install triton`"
    if device.type == "cuda" and not torch.compiler.is_compiling():  # which cannot ask a driver; `capability` will
        return _device_refuses(device)
    return None


@functools.cache
def _device_refuses(device: torch.device) -> str | None:
    if interpreted():
        return "TRITON_INTERPRET=1 is set, which is for tests without a GPU"
    if torch.version.hip is not None:
        return "it was written for NVIDIA GPUs"
    found = torch.cuda.get_device_capability(device)
    if found < OLDEST:
        return f"compute capability {'.'.join(map(str, found))} is below {'.'.join(map(str, OLDEST))}"
    return None


def passed_over(tensors: Sequence[Tensor], agrees: Callable[[torch.device], bool]) -> bool:
    """Whether ``auto`` does not take a kernel although it would run.

    So in the interpreter, where it is no gain, and on a GPU where it does not agree with torch. That is tried once a
    device and process, but not while a graph is being made.

    Args:
        tensors: some that it is to run on.
        agrees: tries it on a device.
    """
    if any(tensor.device.type != "cuda" for tensor in tensors):
        return True
    return all(map(may_wait_for, tensors)) and not all(agrees(tensor.device) for tensor in tensors)


@functools.cache
def gram_agrees(device: torch.device) -> bool:
    """Whether :func:`add_products_` gives torch's sums on a device."""
    return error_of_a_trial(add_products_, device) <= GATE


@functools.cache
def score_agrees(device: torch.device) -> bool:
    """Whether :func:`score` gives torch's sums on a device."""
    generator = torch.Generator(device).manual_seed(0)
    x, y, coef = (torch.randn(*shape, device=device, generator=generator) for shape in ((300, 72), (300, 40), (72, 40)))
    intercept = torch.arange(40.0, device=device)
    off = score(x, coef, intercept, y, [])[3].double()
    exact = (y.double() - x.double() @ coef.double() - intercept.double()).square().sum(1)
    return bool((off / exact - 1).abs().max() <= GATE)


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
    config = _tuning.choose(f"gram_ {dtypes}", (len(fold), widest), fold.device, configs, try_out)
    launch(config, grams, sums, squares)


@gram_.register_fake
def _(*_: Any) -> None:
    return None


@torch.library.custom_op("fastprobe::triton_score", mutates_args=("residual",))
def score(x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, residual: Sequence[Tensor]) -> Tensor:
    """``kernels/score.py`` as an operator of torch; ``residual`` is empty or the three sums of ``ResidualSums``."""
    from fastprobe.kernels import gram
    from fastprobe.kernels import score as kernels

    if not len(x):
        return x.new_empty(4, 0, dtype=torch.float32)
    device, (d, k) = x.device, coef.shape
    config = _tuning.choose(
        keyed("score", x.dtype),
        (len(x), d),
        device,
        kernels.configs(capability(device)),
        lambda config: kernels.score(x, coef, intercept, y, config=config),
    )
    if not residual:
        return kernels.score(x, coef, intercept, y, config=config)
    cross, sums, squares = residual
    origins = [torch.zeros(width, dtype=torch.float64, device=device) for width in (d, k)]
    parts = []
    for start in range(0, len(x), RESIDUAL_ROWS):
        here = slice(start, start + RESIDUAL_ROWS)
        left = torch.empty(len(x[here]), k, dtype=torch.float32, device=device)
        parts.append(kernels.score(x[here], coef, intercept, y[here], left, config=config))
        gram.gram_(
            [cross[None]],
            [None, sums[None]],
            [None, squares[None]],
            [x[here], left],
            [(0, 1)],
            torch.zeros(len(left), dtype=torch.int64, device=device),
            origins,
            config=gram.configs(capability(device))[0],
        )
    return torch.cat(parts, dim=1)


@score.register_fake
def _(x: Tensor, coef: Tensor, intercept: Tensor, y: Tensor, residual: Sequence[Tensor]) -> Tensor:
    return x.new_empty(4, len(x), dtype=torch.float32)


@functools.cache
def capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of a GPU; ``None`` of a CPU, where Triton interprets.

    Raises:
        BackendError: the kernels cannot run on that GPU.
    """
    if device.type == "cuda" and (reason := _device_refuses(device)):
        raise BackendError(f"backend 'triton': {reason}")
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def keyed(kernel: str, dtype: torch.dtype) -> str:
    """The name of a kernel's measurements for rows of this dtype."""
    return f"{kernel} {str(dtype).removeprefix('torch.')}"
