"""Errors of sums and scores by the length of a chain in the tensor core, with an emulator and the kernels' own length.

The largest error allowed is 1e-6 of sqrt(G_ii G_jj) for a Gram entry, and 1e-3 of itself for 1 - R² from moments. A
longer chain in a kernel fails here.
"""

import itertools

import numpy as np
import pytest

from fastprobe.testing import tensor_core

pytest.importorskip("triton")

from fastprobe.kernels import gram, score
from fastprobe.kernels._planes import CHAIN
from fastprobe.kernels.gram import FLUSH

GATE = 1e-6


def as_bfloat16(numbers):
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def error(x, chain, flush=FLUSH):
    """Return the largest error of an entry of x^T x, relative to sqrt(G_ii G_jj)."""
    exact = x.T.astype(float) @ x
    norms = np.sqrt(exact.diagonal())
    return (np.abs(tensor_core.gram(x, x, chain=chain, flush=flush) - exact) / np.outer(norms, norms)).max()


def planes_error(x, chain, flush):
    """Return the same of float32 rows, as kernels sum the products of their planes: one chain a product."""
    planes, rest = [], np.float32(x)
    for _ in range(3):
        planes.append(as_bfloat16(rest))
        rest = rest - planes[-1]
    order = [(i, j) for i in range(3) for j in range(3 - i)]
    chains = range(0, len(x), chain)
    left, right = (
        np.concatenate([planes[pair[side]][start : start + chain] for start in chains for pair in order])
        for side in (0, 1)
    )
    exact = np.float32(x).T.astype(float) @ np.float32(x)
    norms = np.sqrt(exact.diagonal())
    got = tensor_core.gram(left, right, chain=chain, flush=flush * len(order))
    return (np.abs(got - exact) / np.outer(norms, norms)).max()


def float64_rows():
    """Return 8,192 rows of four columns: with an outlier every 512 rows, at mean 30, skewed, and normal."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8192, 4))
    x[::512, 0] = 30
    x[:, 1] += 30
    x[:, 2] = rng.exponential(size=8192)
    return x


@pytest.fixture
def rows():
    return as_bfloat16(float64_rows())


def regression(n=32_768, columns=15):
    """Return correlated columns, one at ten standard deviations, a few massive rows, and y with 1 - R² = 1e-3."""
    rng = np.random.default_rng(0)
    mix = np.linalg.qr(rng.standard_normal((columns, columns)))[0] * np.logspace(0, -1.5, columns)
    z = rng.standard_normal((n, columns))
    x = z @ mix + 0.3 * z
    x[:, 0] += 10 * x[:, 0].std()
    x[rng.random(n) < 0.003] *= 20
    x = as_bfloat16(x)
    y = x @ rng.standard_normal(columns)
    y += y.std() * np.sqrt(1e-3) * rng.standard_normal(n)
    return np.column_stack([np.ones(n, np.float32), x, as_bfloat16(y)])


def unexplained(moments):
    """Return 1 - R² of the last column regressed on the others, of which the first is constant, from all products."""
    scale = np.sqrt(moments.diagonal())
    scaled = moments / np.outer(scale, scale)
    coef = np.linalg.lstsq(scaled[:-1, :-1], scaled[:-1, -1], rcond=1e-12)[0]
    return (1 - scaled[:-1, -1] @ coef) / (1 - scaled[0, -1] ** 2)


def test_every_configuration_uses_the_chain_that_is_tested_here():
    for at in ((8, 0), (9, 0), (10, 0), None):
        assert all(config.chain <= CHAIN for config in (*gram.configs(at), *score.configs(at)))


def test_the_chain_keeps_the_gate_and_one_of_twice_its_length_does_not(rows):
    assert error(rows, CHAIN) <= GATE / 2
    assert error(rows, 2 * CHAIN) > GATE


@pytest.mark.parametrize("flush", [FLUSH, 2 * FLUSH])
def test_every_dtype_keeps_the_gate_whatever_is_summed_in_float32(flush, rows):
    halves = float64_rows().astype(np.float16).astype(np.float32)

    assert error(rows, CHAIN, flush) <= GATE
    assert error(halves, CHAIN, flush) <= GATE
    assert planes_error(float64_rows(), CHAIN, flush) <= GATE


def test_chains_of_twice_the_length_lose_the_gate_in_float16():
    halves = float64_rows().astype(np.float16).astype(np.float32)

    assert error(halves, 2 * CHAIN) > GATE


def test_the_error_grows_with_the_chain(rows):
    errors = [error(rows, chain) for chain in (CHAIN, 4 * CHAIN, 16 * CHAIN, 64 * CHAIN)]

    assert all(longer > 2 * shorter for shorter, longer in itertools.pairwise(errors))
    assert errors[-1] > 1e-5


def test_a_row_a_hundred_times_as_large_in_every_chain_costs_twice_the_gate_at_most():
    # The tensor core cuts off digits of small terms beside a massive activation: the worst case that was found. A chain
    # of half the length stays within the gate.
    for size in (100, 300, 1000, 3000):
        x = np.random.default_rng(0).standard_normal((8192, 2))
        x[::CHAIN, 0] = size
        assert error(as_bfloat16(x), CHAIN) <= 2 * GATE
        assert error(as_bfloat16(x), CHAIN // 2) <= GATE


def test_r2_from_moments_keeps_its_gate_and_loses_it_in_long_chains():
    data = regression()
    exact = unexplained(data.T.astype(float) @ data)

    def off(chain):
        return abs(unexplained(tensor_core.gram(data, data, chain=chain, flush=FLUSH)) / exact - 1)

    assert exact == pytest.approx(1e-3, rel=0.05)
    assert off(CHAIN) <= 1e-3
    assert off(FLUSH) > 1e-3
    assert off(len(data)) > 1e-2
