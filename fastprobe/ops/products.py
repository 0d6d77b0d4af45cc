"""Products of float32 matrices on a CPU, by the faster of the two libraries inside torch: oneDNN or MKL.

torch itself sends them to MKL on x86 processors. oneDNN can be called by an operator with a private name. The table of
processors (``_dispatch/processors.py``) says which one is faster. The two differ by the rounding of float32 sums.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fastprobe.ops._dispatch import processors


class FastLinear(TorchFunctionMode):
    """Context in which modules that call ``torch.nn.functional.linear`` run :func:`linear` instead.

    On a Zen 4 a forward pass takes 0.8 of the time (benchmarks/NOTES.md). No module is changed. Calls that record
    gradients are left to torch, because the operator has no derivative.
    """

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Leave the context for a block: inside the context every call of torch costs microseconds of Python."""
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
    """Return ``x weight^T + bias``, by oneDNN where that is faster and gradients are off, else by torch."""
    if _fits_onednn(x, weight) and _takes_onednn():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _fits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and type(weight) in (Tensor, Parameter)  # a subclass, like a quantised weight, computes its product itself
        and weight.is_contiguous()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    )


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b``, by oneDNN for float32 matrices on a CPU where that is faster, else by torch."""
    if a.device.type != "cpu" or a.dtype != torch.float32 or not a.numel() or not b.numel() or not _takes_onednn():
        return a @ b
    # A matrix whose rows and columns are both strided would run in oneDNN's reference code, 1000 times slower.
    b = b if b.is_contiguous() or b.mT.is_contiguous() else b.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.mT, None, "none", [], "")


def _takes_onednn() -> bool:
    return processors.family().onednn and _onednn_agrees()


@functools.cache
def _onednn_agrees() -> bool:
    """Return whether this torch has oneDNN's private operator, and the operator gives the product."""
    if not torch.backends.mkldnn.is_available():
        return False
    a = torch.linspace(-1, 1, 3 * 5).reshape(3, 5)
    b = torch.linspace(1, 2, 4 * 5).reshape(4, 5)
    try:
        out = torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(torch.allclose(out, a @ b.mT, rtol=1e-5, atol=1e-6))
