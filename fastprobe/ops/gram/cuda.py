"""``gram_`` on the kernels in CUDA C++: ``csrc/cuda/gram.cu``."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastprobe.errors import BackendError
from fastprobe.ops._dispatch import trial_process
from fastprobe.ops.gram.api import Block, Pair, gram_, in_float64
from fastprobe.ops.gram.cuda_launches import DTYPES, SLAB, Launches
from fastprobe.ops.gram.layout import tensors_of
from fastprobe.ops.gram.origins import moved_by
from fastprobe.ops.gram.trial import error_of_a_trial

INTERFACE = 2
"""Version of the calls into ``fastprobe._cuda``; ``csrc/cuda/module.cpp`` has the same number. Raise both together."""

HOW_TO_BUILD = (
    "with nvcc, `FASTPROBE_BUILD=cuda pip install --force-reinstall --no-deps --editable .` in the checkout builds it"
)

GATE = {False: 1e-6, True: 1e-12}
"""Largest error of a trial, relative to the norms of the columns, on wgmma and in float64."""


@functools.cache
def library() -> Any:
    """Return ``fastprobe._cuda``, or ``None`` where it was not built or was built from other sources."""
    try:
        library = importlib.import_module("fastprobe._cuda")
    except ImportError:
        return None
    return library if getattr(library, "INTERFACE", 0) == INTERFACE else None


def _refuses(blocks: Sequence[Block], pairs: Sequence[Pair], fold: Tensor, *, exact: bool = False) -> str | None:
    exact = in_float64(blocks, exact)
    if torch.compiler.is_compiling():
        return "torch.compile cannot look into it"
    if reason := _not_on_one_gpu(tensors_of(blocks, pairs, fold)):
        return reason
    if library() is None:
        return f"fastprobe._cuda was not built; {HOW_TO_BUILD}"
    if len(fold) + SLAB * (len(pairs) + 1) >= 2**31:
        return f"{len(fold)} rows are more than 32-bit coordinates reach"
    if not all(block.rows.shape[1] for block in blocks):
        return "a block of rows has no columns"
    if exact and (unknown := {block.rows.dtype for block in blocks} - DTYPES.keys()):
        return f"{str(unknown.pop()).removeprefix('torch.')} rows are not for the CUDA kernels"
    if any(pair.gram.stride(2) != 1 for pair in pairs):
        return "the columns of a gram must be adjacent"
    if not exact and (reason := _not_for_wgmma(blocks)):
        return reason
    return _device_refuses(fold.device, exact)


def _not_on_one_gpu(tensors: Sequence[Tensor]) -> str | None:
    device = tensors[0].device
    if device.type != "cuda":
        return f"a tensor is on {device}, not on a GPU"
    elsewhere = [tensor.device for tensor in tensors if tensor.device != device]
    return f"tensors are on {device} and on {elsewhere[0]}" if elsewhere else None


def _not_for_wgmma(blocks: Sequence[Block]) -> str | None:
    dtypes = {block.rows.dtype for block in blocks}
    if len(dtypes) > 1 or not dtypes <= {torch.bfloat16, torch.float16}:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return f"it takes bfloat16 rows or float16 rows, not {names} (exact=True takes any, in float64)"
    for b, block in enumerate(blocks):
        if block.rows.dtype not in moved_by(block.origin).fits:
            return f"{str(block.rows.dtype).removeprefix('torch.')} cannot represent blocks[{b}].origin exactly"
    return None


@functools.cache
def _device_refuses(device: torch.device, exact: bool) -> str | None:
    """Return why this build cannot run on a device, or ``None``. A kernel is tried once, in another process."""
    capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
    built = library().ARCHITECTURES.split(",")
    if not exact and capability != "9.0":
        return f"wgmma is for compute capability 9.0; {device} has {capability}"
    if capability not in (name.rstrip("a") for name in built):
        return f"fastprobe._cuda was built for {', '.join(built)}; {device} has {capability}"
    try:
        error = trial_process.result_of(exact_gram_error if exact else gram_error, device)
    except BackendError as reason:
        return str(reason)
    return None if error <= GATE[exact] else f"on {device} its sums differ from torch's by {error:.1e} of their size"


def gram_error(device: torch.device) -> float:
    """Return the error of the products on wgmma in a trial."""
    return error_of_a_trial(launch_gram, device)


def exact_gram_error(device: torch.device) -> float:
    """Return the error of the products in float64 in a trial."""
    return error_of_a_trial(functools.partial(launch_gram, exact=True), device)


@gram_.register("cuda", unless=_refuses)
def launch_gram(blocks: Sequence[Block], pairs: Sequence[Pair], fold: Tensor, *, exact: bool = False) -> None:
    """Add with ``csrc/cuda/gram.cu``: 16-bit rows on wgmma in chains of 128 rows; any rows in float64 with ``exact``.

    The launches go to the current stream of the rows' device.

    Args:
        blocks: see :func:`fastprobe.ops.gram.gram_`; already checked.
        pairs: the same.
        fold: the same.
        exact: the same.
    """
    if not len(fold):
        return
    with torch.cuda.device(fold.device):
        launches = Launches(library(), blocks, pairs, fold, exact)
        for b, block in enumerate(blocks):
            launches.read(b, block.sum, block.square)
        launches.multiply()
