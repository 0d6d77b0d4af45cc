"""What this machine and this torch can do, asked once."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def may_wait_for(tensor: Tensor) -> bool:
    """Whether a number may be read off a tensor: not where a graph is being made, which stands for later values."""
    if torch.compiler.is_compiling():
        return False
    return tensor.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


class FastLinear(TorchFunctionMode):
    """Inside this context the ``linear`` of modules is that of this file: on AMD a forward pass takes 0.8 of the time.

    It differs by the rounding of float32 sums (benchmarks/NOTES.md).
    No module is touched. Without autograd: the operator has no derivative.
    """

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Leave the context for a while: inside it every call of torch costs microseconds of Python."""
        self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.__enter__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and len(args) == 3:
            return linear(*args)
        return func(*args, **(kwargs or {}))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x weight^T + bias`` by the fastest of the libraries inside torch; without autograd on a CPU in float32."""
    if _fits_onednn(x, weight) and _onednn_is_faster():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _fits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and weight.is_contiguous()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` by the fastest of the libraries inside torch.

    On x86 CPUs torch sends float32 products to MKL, which on AMD processors runs at 0.5 to 0.8 of oneDNN's rate
    (benchmarks/NOTES.md). oneDNN sits in the same torch behind an operator with a private name, hence the probe: where
    it is missing or gives another answer, this is plain ``@``.
    """
    if a.device.type != "cpu" or a.dtype != torch.float32 or not a.numel() or not b.numel() or not _onednn_is_faster():
        return a @ b
    # A matrix whose rows are neither adjacent nor its columns takes oneDNN's reference code, a thousand times slower.
    b = b if b.is_contiguous() or b.mT.is_contiguous() else b.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.mT, None, "none", [], "")


@functools.cache
def _onednn_is_faster() -> bool:
    """Whether oneDNN is there, agrees and beats MKL at a product of a small encoder: some milliseconds, once."""
    if not _onednn_agrees():
        return False
    x, weight, bias = torch.ones(512, 384), torch.ones(384, 384), torch.ones(384)
    onednn, mkl = [], []
    for _ in range(8):  # in turn, as other processes may come between; the first round is slower
        start = time.perf_counter()
        torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        between = time.perf_counter()
        F.linear(x, weight, bias)
        onednn.append(between - start)
        mkl.append(time.perf_counter() - between)
    return min(onednn) < min(mkl)


@functools.cache
def _onednn_agrees() -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    a = torch.linspace(-1, 1, 3 * 5).reshape(3, 5)
    b = torch.linspace(1, 2, 4 * 5).reshape(4, 5)
    try:
        out = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.allclose(out, a @ b.mT, rtol=1e-5, atol=1e-6))
