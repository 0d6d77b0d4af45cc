"""Whether the kernels in CUDA C++ were built, and what they take."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fastprobe.ops.gram.call import GramCall
from fastprobe.ops.gram.cuda import DTYPES, SLAB, gram_, library, moved_by
from fastprobe.ops.gram.trial import error_of_a_trial

HOW_TO_BUILD = (
    "with nvcc, `FASTPROBE_BUILD=cuda pip install --force-reinstall --no-deps --editable .` in the checkout builds it"
)

GATE = {False: 1e-6, True: 1e-12}
"""Largest error of a trial, of the size of its columns: on wgmma, and in float64."""


def gram_refuses(call: GramCall) -> str | None:
    """Why a call is not for the CUDA kernels, or ``None``."""
    rows, fold, exact = call.rows, call.fold, call.in_float64
    if torch.compiler.is_compiling():
        return "torch.compile cannot look into it"
    if reason := _not_on_one_gpu(call.tensors):
        return reason
    if library() is None:
        return f"fastprobe._cuda was not built; {HOW_TO_BUILD}"
    if len(fold) + SLAB * (len(call.grams) + 1) >= 2**31:
        return f"{len(fold)} rows are more than 32-bit coordinates reach"
    if not all(block.shape[1] for block in rows):
        return "a block of rows has no columns"
    if exact and (strange := {block.dtype for block in rows} - DTYPES.keys()):
        return f"{str(strange.pop()).removeprefix('torch.')} rows are not for the CUDA kernels"
    if any(gram.stride(2) != 1 for gram in call.grams):
        return "the columns of a gram do not lie side by side"
    if not exact and (reason := _not_for_wgmma(rows, call.origins)):
        return reason
    return _cannot_run(fold.device, exact)


def _not_on_one_gpu(tensors: Sequence[Tensor]) -> str | None:
    device = tensors[0].device
    if device.type != "cuda":
        return f"a tensor is on {device}, not on a GPU"
    elsewhere = [tensor.device for tensor in tensors if tensor.device != device]
    return f"tensors are on {device} and on {elsewhere[0]}" if elsewhere else None


def _not_for_wgmma(rows: Sequence[Tensor], origins: Sequence[Tensor]) -> str | None:
    dtypes = {block.dtype for block in rows}
    if len(dtypes) > 1 or not dtypes <= {torch.bfloat16, torch.float16}:
        names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        return f"it takes bfloat16 rows or float16 rows, not {names} (exact=True takes any, in float64)"
    for i, origin in enumerate(origins):
        if rows[i].dtype not in moved_by(origin).fits:
            return f"origins[{i}] has numbers that {str(rows[i].dtype).removeprefix('torch.')} rows cannot have"
    return None


@functools.cache
def _cannot_run(device: torch.device, exact: bool) -> str | None:
    """Why this build does not run on this device, or ``None``; once a device and kernel it is tried against torch."""
    capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
    built = library().ARCHITECTURES.split(",")
    if not exact and capability != "9.0":
        return f"wgmma is for compute capability 9.0; {device} has {capability}"
    if capability not in (name.rstrip("a") for name in built):
        return f"fastprobe._cuda was built for {', '.join(built)}; {device} has {capability}"
    error = error_of_a_trial(lambda call: gram_(call._replace(exact=exact)), device)
    return None if error <= GATE[exact] else f"on {device} its sums differ from torch's by {error:.1e} of their size"
