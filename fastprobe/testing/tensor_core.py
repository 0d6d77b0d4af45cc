"""What a tensor core makes of a long sum, bit by bit: for tests of kernels that add up in one, on machines without.

Hopper's tensor cores round toward zero (Khattak and Mikaitis, 2025; MMA-Sim, 2025). Sums of squares have terms of one
sign, so they come out low, by more the longer one chain of products is. The model was published for these chips by
others; ``make gpu`` begins with the sweep that confirms or refutes it on the card at hand.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEP = 16
"""Products that one instruction adds to an accumulator: its k, for 16-bit operands."""

FRACTION = 25
"""Fractional bits that are kept of every term once all are aligned to the largest."""

Floats = NDArray[np.float32]


def multiply_add(a: Floats, b: Floats, c: Floats) -> Floats:
    """``a b + c`` as one instruction computes it.

    The exponent of a product is the sum of its factors' exponents, its significand lies in [1, 4). Every product and c
    is aligned to the largest exponent and cut to ``FRACTION`` fractional bits; the sum of what is left is exact and is
    rounded toward zero.

    Args:
        a: ``(M, STEP)``, every number a bfloat16 or float16 one.
        b: ``(STEP, N)``, the same.
        c: ``(M, N)`` float32, what is in the accumulator.

    Returns:
        ``(M, N)`` float32, the accumulator afterwards.
    """
    products = a.astype(np.float64)[:, :, None] * b.astype(np.float64)
    terms = np.concatenate([products, c[:, None].astype(np.float64)], axis=1)
    exponents = np.concatenate([_exponent(a)[:, :, None] + _exponent(b), _exponent(c)[:, None]], axis=1)
    exponents = np.where(terms == 0, np.int32(-200), exponents)
    unit = np.ldexp(1.0, exponents.max(1, keepdims=True) - FRACTION)
    return _toward_zero((np.trunc(terms / unit) * unit).sum(1))


def gram(x: Floats, y: Floats, *, chain: int, flush: int = 2048) -> NDArray[np.float64]:
    """``x^T y`` as a kernel on the tensor core adds it up.

    Chains of ``chain`` rows in the tensor core, their results in float32 rounded to nearest, and every ``flush`` rows
    what came together in float64.

    Args:
        x: ``(N, D)``, every number a bfloat16 or float16 one.
        y: ``(N, K)``, the same.
        chain: rows, a multiple of ``STEP``.
        flush: rows; no effect where it is below ``chain``.

    Returns:
        ``(D, K)`` float64.
    """
    assert chain % STEP == 0
    out = np.zeros((x.shape[1], y.shape[1]))
    for start in range(0, len(x), max(chain, flush)):
        total = np.zeros(out.shape, np.float32)
        end = min(start + max(chain, flush), len(x))
        for first in range(start, end, chain):
            part = np.zeros_like(total)
            for n in range(first, min(first + chain, end), STEP):
                a, b = (np.zeros((STEP, rows.shape[1]), np.float32) for rows in (x, y))
                length = min(STEP, end - n)
                a[:length], b[:length] = x[n : n + length], y[n : n + length]
                part = multiply_add(a.T, b, part)
            total += part
        out += total
    return out


def _exponent(numbers: Floats) -> NDArray[np.int32]:
    """Exponents of numbers whose significands lie in [1, 2)."""
    return np.frexp(numbers)[1] - 1


def _toward_zero(numbers: NDArray[np.float64]) -> Floats:
    nearest = numbers.astype(np.float32)
    return np.where(np.abs(nearest) > np.abs(numbers), np.nextafter(nearest, np.float32(0)), nearest)
