"""The emulation of a tensor core, compared with the published rules, one rule a test."""

import numpy as np
import pytest

from fastprobe.testing.tensor_core import STEP, gram, multiply_add


def one_sum(products, c=0.0):
    """Return c plus the products as one instruction adds them; one factor of each product is 1."""
    a, b = np.zeros((1, STEP), np.float32), np.ones((STEP, 1), np.float32)
    a[0, : len(products)] = products
    return float(multiply_add(a, b, np.full((1, 1), c, np.float32))[0, 0])


def as_bfloat16(numbers):
    """Return numbers rounded to bfloat16, as float32."""
    return ((numbers.astype(np.float32).view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)


def test_sums_of_small_integers_are_exact():
    a = np.arange(2 * STEP, dtype=np.float32).reshape(2, STEP) - 9
    b = np.arange(3 * STEP, dtype=np.float32).reshape(STEP, 3) - 20
    c = np.array([[1, -2, 3], [4, 5, -6]], np.float32)

    assert np.array_equal(multiply_add(a, b, c), a.astype(float) @ b + c)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_is_rounded_toward_zero(sign):
    # 1 + 2^-24 + 2^-25 is nearer to 1 + 2^-23.
    assert one_sum([sign * 2**-24, sign * 2**-25], c=sign) == sign


def test_terms_keep_twenty_five_fractional_bits():
    assert one_sum([2**-25] * 4, c=1.0) == 1 + 2**-23


@pytest.mark.parametrize("sign", [1, -1])
def test_each_term_is_truncated_below_the_last_fractional_bit(sign):
    assert one_sum([sign * 2**-26] * 16, c=1.0) == 1
    assert one_sum([1.0], c=-1 + 2**-20) == 2**-20


def test_a_product_is_aligned_by_the_exponents_of_its_factors():
    # 1.5 x 1.5 = 2.25 has exponent 0 here, so 2^-25 is kept. With 2.25 in the accumulator it is truncated.
    a, b = np.zeros((1, STEP), np.float32), np.zeros((STEP, 1), np.float32)
    a[0, :9], b[:9, 0] = [1.5, *[2**-25] * 8], [1.5, *[1] * 8]

    assert multiply_add(a, b, np.zeros((1, 1), np.float32))[0, 0] == np.float32(2.25 + 2**-22)
    assert one_sum([2**-25] * 8, c=2.25) == 2.25


def test_zeros_do_not_change_the_alignment():
    assert one_sum([], c=2**-100) == np.float32(2**-100)
    assert one_sum([2**-60], c=0.0) == 2**-60
    assert one_sum([]) == 0


@pytest.mark.parametrize(("chain", "bias"), [(128, 1.9e-7), (256, 3.8e-7), (1024, 1.9e-6), (8192, 2.7e-5)])
def test_sums_of_squares_are_too_small_by_the_published_bias(chain, bias):
    x = as_bfloat16(np.random.default_rng(0).standard_normal((16_384, 8)))

    squares = gram(x, x, chain=chain).diagonal() / np.square(x, dtype=float).sum(0) - 1

    assert (squares < 0).all()
    assert 0.6 < -squares.mean() / bias < 1.6


def test_a_last_incomplete_chain_is_added():
    x = np.random.default_rng(0).integers(-8, 9, (2 * 128 + 21, 3)).astype(np.float32)
    y = np.random.default_rng(1).integers(-8, 9, (2 * 128 + 21, 2)).astype(np.float32)

    for flush in (128, 256, 2048):
        assert np.array_equal(gram(x, y, chain=128, flush=flush), x.astype(float).T @ y)
