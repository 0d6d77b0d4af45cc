"""Bit-exact emulation of the sums of a tensor core, for tests of kernels on machines without one.

Hopper's tensor cores round toward zero (Khattak and Mikaitis, 2025; MMA-Sim, 2025). Sums of squares have terms of one
sign, so they are too small, and the error grows with the length of a chain of products. ``make gpu`` has a
sweep that checks this published model on the GPU of the machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEP = 16
"""Products that one instruction adds to an accumulator: its k for 16-bit operands."""

FRACTION = 25
"""Fractional bits of every term that are kept after all terms are aligned to the largest."""

Floats = NDArray[np.float32]


def multiply_add(a: Floats, b: Floats, c: Floats) -> Floats:
    """Return ``a b + c`` as one instruction computes it.

    The exponent of a product is the sum of its factors' exponents; its significand is in [1, 4). The products and c
    are aligned to the largest exponent and truncated to ``FRACTION`` fractional bits. Their sum is exact and is rounded
    toward zero.

    Args:
        a: ``(M, STEP)`` float32 of bfloat16 or float16 values.
        b: ``(STEP, N)``, the same.
        c: ``(M, N)`` float32, the accumulator before.

    Returns:
        ``(M, N)`` float32, the accumulator after.
    """
    products = a.astype(np.float64)[:, :, None] * b.astype(np.float64)
    terms = np.concatenate([products, c[:, None].astype(np.float64)], axis=1)
    exponents = np.concatenate([_exponent(a)[:, :, None] + _exponent(b), _exponent(c)[:, None]], axis=1)
    exponents = np.where(terms == 0, np.int32(-200), exponents)
    unit = np.ldexp(1.0, exponents.max(1, keepdims=True) - FRACTION)
    return _toward_zero((np.trunc(terms / unit) * unit).sum(1))


def gram(x: Floats, y: Floats, *, chain: int, flush: int = 2048) -> NDArray[np.float64]:
    """Return ``x^T y`` as a kernel on a tensor core computes it.

    The tensor core sums chains of ``chain`` rows. Their results are added in float32, rounded to nearest, and every
    ``flush`` rows that sum is added to the result in float64.

    Args:
        x: ``(N, D)`` float32 of bfloat16 or float16 values.
        y: ``(N, K)``, the same.
        chain: rows of a chain, a multiple of ``STEP``.
        flush: rows of a float32 sum; it has no effect below ``chain``.

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
    """Return the exponents of numbers whose significands are in [1, 2)."""
    return np.frexp(numbers)[1] - 1


def _toward_zero(numbers: NDArray[np.float64]) -> Floats:
    """Return numbers rounded toward zero to float32."""
    nearest = numbers.astype(np.float32)
    return np.where(np.abs(nearest) > np.abs(numbers), np.nextafter(nearest, np.float32(0)), nearest)
