"""Find by behaviour which matrix a module multiplies by.

The weight that a module shows may not be the one that runs. Adapters add a product, parametrizations and hooks compute
the weight from others, quantised modules keep a packed copy, and autocast keeps a cast one. These tests know no class.
They call the module and compare its output with that of a plain linear layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest relative Frobenius difference of two products that differ by rounding, by their dtype."""

REMEDY = (
    "merge or remove adapters and parametrizations, load the model without quantisation and without offloading, or "
    "choose another edit"
)
"""Advice for a user whose weights cannot be edited."""

AFFINE = 0.05
"""Largest relative error of a module that counts as affine, or as one that works feature by feature. Quantised products
are off by about 0.01; norms and activations by about 1."""


SCALE = 100
"""Root mean square of the inputs in the tests. An activation of small numbers is nearly affine."""

Function = Callable[[Tensor], Tensor]
"""Module as a function of one tensor ``(..., d)`` to another ``(..., k)``."""


def is_matrix(run: Function, x: Tensor) -> bool:
    """Return whether a module multiplies its input by a matrix.

    Such a module is affine, f(2x) - 2f(x) + f(0) = 0 and f(x) + f(-x) - 2f(0) = 0, and it mixes features or changes
    their number.

    Args:
        run: the module.
        x: an input of it, ``(..., d)``.
    """
    x = x * (SCALE / x.double().square().mean().sqrt().clamp(min=1e-30)).to(x.dtype)
    zero, y = run(torch.zeros_like(x)), run(x)
    size = AFFINE * _norm(y - zero)
    if size == 0:  # the output is constant, so the matrix is zero
        return True
    if not max(_norm(run(2 * x) - 2 * y + zero), _norm(run(-x) + y - 2 * zero)) <= size:
        return False
    if x.shape[-1] != y.shape[-1]:
        return True
    moved = x.clone()
    moved[..., 0] += SCALE
    change = run(moved) - y
    return _norm(change[..., 1:]) > AFFINE * _norm(change)


def is_product(run: Function, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether the output of a module is the product of its input and a matrix, up to rounding.

    Args:
        run: the module.
        x: an input of it, ``(..., in)``.
        weight: ``(out, in)`` as in ``nn.Linear``, or ``(in, out)`` as in GPT-2.
        bias: ``(out,)``, zero by default.
    """
    y = run(x)
    for matrix in (weight, weight.mT):
        if matrix.shape == (y.shape[-1], x.shape[-1]):
            expected = F.linear(x, matrix.to(x.dtype), None if bias is None else bias.to(x.dtype))
            if _norm(y - expected) <= ROUNDING.get(y.dtype, 1e-5) * _norm(expected):
                return True
    return False


def _norm(values: Tensor) -> float:
    return float(values.double().norm())
