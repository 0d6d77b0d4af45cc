"""What the length of a chain in the tensor core does to sums and scores, on the emulator, with the kernels' own length.

The gate of a Gram entry is 1e-6 of sqrt(G_ii G_jj), that of 1 - R² from moments 1e-3 of itself. Whoever lengthens the
chain of a kernel fails here.
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


def error(x, chain):
    """Largest error of an entry of x^T x over sqrt(G_ii G_jj)."""
    exact = x.T.astype(float) @ x
    norms = np.sqrt(exact.diagonal())
    return (np.abs(tensor_core.gram(x, x, chain=chain, flush=FLUSH) - exact) / np.outer(norms, norms)).max()


@pytest.fixture
def rows():
    """8,192 rows of four columns: one with an outlier every 512 rows, one at mean 30, one skewed, one plain."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8192, 4))
    x[::512, 0] = 30
    x[:, 1] += 30
    x[:, 2] = rng.exponential(size=8192)
    return as_bfloat16(x)


def regression(n=32_768, columns=15):
    """Correlated columns, one at ten standard deviations, a few massive rows, and y with 1 - R² = 1e-3."""
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
    """1 - R² of the last column by the others, the first of which is constant, from the products of all."""
    scale = np.sqrt(moments.diagonal())
    scaled = moments / np.outer(scale, scale)
    coef = np.linalg.lstsq(scaled[:-1, :-1], scaled[:-1, -1], rcond=1e-12)[0]
    return (1 - scaled[:-1, -1] @ coef) / (1 - scaled[0, -1] ** 2)


def test_every_configuration_keeps_to_the_chain_that_is_tested_here():
    for at in ((8, 0), (9, 0), (10, 0), None):
        assert all(config.chain <= CHAIN for config in (*gram.configs(at), *score.configs(at)))


def test_the_chain_keeps_the_gate_and_twice_as_long_a_one_does_not(rows):
    assert error(rows, CHAIN) <= GATE / 2
    assert error(rows, 2 * CHAIN) > GATE


def test_the_error_grows_with_the_chain(rows):
    errors = [error(rows, chain) for chain in (CHAIN, 4 * CHAIN, 16 * CHAIN, 64 * CHAIN)]

    assert all(longer > 2 * shorter for shorter, longer in itertools.pairwise(errors))
    assert errors[-1] > 1e-5


def test_a_row_a_hundred_times_as_large_in_every_chain_costs_twice_the_gate_at_most():
    # What is left of the small terms beside a massive activation is cut off: the worst that was found. A chain of half
    # the length stays within the gate.
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
