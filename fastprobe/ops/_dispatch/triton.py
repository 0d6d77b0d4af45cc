"""The Triton kernels: their reasons to refuse arguments, and the device they run on.

A kernel runs inside an operator of torch, with an implementation for shapes alone. ``torch.compile`` then keeps it as
one node, and CUDA graphs can capture it: after one call with the same widths, a launch neither waits for the device nor
copies to it. Names follow one scheme, here for ``score``; each line calls the next:

    ops/score/triton.py    launch_score      implementation that is registered (``_on_triton`` in the encoder's files)
                           score_operator    operator of torch; chooses a configuration
    kernels/score.py       launch_score      launch of the kernel
                           score_kernel      kernel
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastprobe.errors import BackendError
from fastprobe.ops._dispatch import trial_process
from fastprobe.ops._dispatch.capture import may_wait_for

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

OLDEST = (8, 0)
"""Lowest compute capability: the first with bfloat16 in its tensor cores."""


def interpreted() -> bool:
    """Return whether Triton runs kernels in its interpreter, on the CPU, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def refuses(tensors: Iterable[Tensor], rows: Iterable[Tensor]) -> str | None:
    """Return why the kernels cannot run on these tensors, or ``None``; ``rows`` are those whose dtype matters."""
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
    if (
        device.type == "cuda" and not torch.compiler.is_compiling()
    ):  # the compiler cannot ask a driver; `capability` will
        return _device_refuses(device)
    return None


def refuses_floats(tensors: Sequence[Tensor]) -> str | None:
    """Return why the kernels cannot run on these tensors, or ``None``; they must have one dtype."""
    if len({tensor.dtype for tensor in tensors}) > 1:
        return f"tensors are of several dtypes: {', '.join(sorted({str(tensor.dtype) for tensor in tensors}))}"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "it has no derivative"
    return refuses(tensors, tensors)


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


def passed_over(tensors: Sequence[Tensor], agrees: trial_process.Trial) -> bool:
    """Return whether ``auto`` leaves out a kernel that could run.

    It does in the interpreter, which is slow, and on a GPU where the kernel disagrees with torch or its trial fails.
    The comparison runs in another process, once a device, and not during graph capture.

    Args:
        tensors: arguments of the call.
        agrees: compares the kernel with torch on a device.
    """
    if any(tensor.device.type != "cuda" for tensor in tensors):
        return True
    return all(map(may_wait_for, tensors)) and not all(_agrees(agrees, tensor.device) for tensor in tensors)


@functools.cache
def _agrees(agrees: trial_process.Trial, device: torch.device) -> bool:
    try:
        return bool(trial_process.result_of(agrees, device))
    except BackendError as reason:
        warnings.warn(f"{agrees.__module__}: its Triton kernel is not used: {reason}", stacklevel=2)
        return False


@functools.cache
def capability(device: torch.device) -> tuple[int, int] | None:
    """Return the compute capability of a GPU, or ``None`` for a CPU, where Triton interprets.

    Raises:
        BackendError: the kernels cannot run on this GPU.
    """
    if device.type == "cuda" and (reason := _device_refuses(device)):
        raise BackendError(f"backend 'triton': {reason}")
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def keyed(kernel: str, dtype: torch.dtype) -> str:
    """Return the name under which a kernel's measurements for rows of this dtype are kept."""
    return f"{kernel} {str(dtype).removeprefix('torch.')}"
