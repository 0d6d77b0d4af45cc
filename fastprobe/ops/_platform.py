"""What this machine and this torch can do, asked once."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` by the fastest of the libraries inside torch.

    On x86 CPUs torch sends float32 products to MKL, which on AMD processors runs at 0.5 to 0.8 of oneDNN's rate
    (benchmarks/NOTES.md). oneDNN sits in the same torch behind an operator with a private name, hence the probe: where
    it is missing or gives another answer, this is plain ``@``.
    """
    if a.device.type != "cpu" or a.dtype != torch.float32 or not a.numel() or not b.numel() or not _onednn_agrees():
        return a @ b
    # A matrix whose rows are neither adjacent nor its columns takes oneDNN's reference code, a thousand times slower.
    b = b if b.is_contiguous() or b.mT.is_contiguous() else b.contiguous()
    return torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.mT, None, "none", [], "")


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
