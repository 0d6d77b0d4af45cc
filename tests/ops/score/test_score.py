"""``score``: every backend against float64, then its contract."""

import pytest
import torch

from fastprobe.errors import BackendError, ShapeError
from fastprobe.ops._dispatch.operation import BACKENDS
from fastprobe.ops.score import ResidualSums, score

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    pytest.param((1, 1, 1), id="one-number"),
    pytest.param((5, 7, 3), id="smaller-than-a-tile"),
    pytest.param((512, 64, 64), id="exactly-a-block-of-rows"),
    pytest.param((1300, 40, 70), id="ragged-over-blocks-of-rows"),
    pytest.param((0, 4, 5), id="no-rows"),
]


def skip_unless_takes(backend, *args):
    if backend == "triton" and args[0].numel() > 40_000:
        pytest.skip("triton: takes minutes in the interpreter")
    if reason := score.refusals(*args)[backend]:
        pytest.skip(f"{backend}: {reason}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_agree_with_float64(backend, dtype, shape, residual_rows, randn):
    n, d, k = shape
    x, y = residual_rows(n, d, dtype), residual_rows(n, k, dtype)
    coef, intercept = randn(d, k) / d**0.5, randn(k)
    skip_unless_takes(backend, x, coef, intercept, y)

    out = score.on(backend)(x, coef, intercept, y)

    target = y.double()
    p = x.double() @ coef + intercept
    # Every sum is of d k products; an entry of p is off by eps sqrt(d) of the size of its terms.
    size = x.double().abs() @ coef.abs() + intercept.abs() + target.abs()
    bound = (1e-14 if dtype == torch.float64 else 3e-6) * size.square().sum(1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    exact = (p * target, p.square(), target.square(), (target - p).square())
    for name, expected in zip(out._fields, exact, strict=True):
        got = getattr(out, name)
        assert got.shape == (n,)
        assert got.dtype == wide
        assert ((got - expected.sum(1)).abs() <= bound).all(), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, pytest.param((2050, 33, 65), id="ragged-over-chunks")])
def test_residuals_are_added_to_the_residual_sums(backend, dtype, shape, residual_rows, randn):
    n, d, k = shape
    x, y = residual_rows(n, d, dtype), residual_rows(n, k, dtype)
    coef, intercept = randn(d, k) / d**0.5, randn(k)
    sums = ResidualSums(randn(d, k), randn(k), randn(k))
    before = [total.clone() for total in sums]
    skip_unless_takes(backend, x, coef, intercept, y)

    out = score.on(backend)(x, coef, intercept, y, residual=sums)

    r = y.double() - x.double() @ coef - intercept
    size = x.double().abs() @ coef.abs() + intercept.abs() + y.double().abs()
    eps = 1e-14 if dtype == torch.float64 else 1e-6
    exact = (x.double().mT @ r, r.sum(0), r.square().sum(0))
    bounds = (x.double().abs().mT @ size, size.sum(0), size.square().sum(0))
    for name, total, old, new, bound in zip(sums._fields, sums, before, exact, bounds, strict=True):
        assert ((total - old - new).abs() <= eps * bound + 1e-14).all(), name
    assert all(map(torch.equal, out, score.on(backend)(x, coef, intercept, y)))


def test_residual_sums_that_do_not_fit_are_refused():
    arguments = torch.ones(3, 2), torch.ones(2, 4), torch.ones(4), torch.ones(3, 4)

    with pytest.raises(ShapeError, match=r"residual\.cross must be \(2, 4\) float64, got \(4, 2\)"):
        score(*arguments, residual=ResidualSums.zero(4, 2))
    with pytest.raises(ShapeError, match=r"residual\.sums must be \(4,\) float64, got \(4,\) torch.float32"):
        score(*arguments, residual=ResidualSums.zero(2, 4)._replace(sums=torch.zeros(4)))


def test_the_error_of_a_nearly_perfect_map_keeps_its_digits(randn):
    x = randn(600, 20, dtype=torch.float32) + 100
    coef, intercept = torch.eye(20, dtype=torch.float64), torch.zeros(20, dtype=torch.float64)
    y = (x.double() + 1e-2 * randn(600, 20)).float()

    out = score(x, coef, intercept, y)

    exact = (y.double() - x.double()).square().sum(1)  # from dot and squares it would be off by 2e5 * 6e-8 = 1e-2
    torch.testing.assert_close(out.error.double(), exact, rtol=1e-3, atol=0)


def test_cosine_is_that_of_each_row_with_its_prediction(randn):
    x, y, coef, intercept = randn(50, 4), randn(50, 3), randn(4, 3), randn(3)

    cosine = score(x, coef, intercept, y).cosine()

    expected = torch.nn.functional.cosine_similarity(x @ coef + intercept, y)
    torch.testing.assert_close(cosine, expected, rtol=1e-12, atol=1e-12)


def test_the_cosine_with_a_zero_row_is_zero(randn):
    x, y = randn(4, 3), randn(4, 3)
    x[1] = 0
    y[2] = 0

    cosine = score(x, torch.eye(3).double(), torch.zeros(3).double(), y).cosine()

    assert (cosine[1:3] == 0).all()
    assert (cosine[[0, 3]] != 0).all()


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_cosine_does_not_depend_on_the_scale_of_float32_rows(scale, randn):
    x = (scale * randn(6, 5)).float()

    cosine = score(x, torch.eye(5), torch.zeros(5), x).cosine()

    torch.testing.assert_close(cosine, torch.ones(6), rtol=1e-6, atol=0)


def test_rows_may_have_any_strides(randn):
    x, y, coef, intercept = randn(30, 8), randn(30, 6), randn(4, 3), randn(3)

    out = score(x[:, ::2], coef, intercept, y.mT.contiguous().mT[:, 1:4])

    expected = score(x[:, ::2].contiguous(), coef, intercept, y[:, 1:4].contiguous())
    for got, same in zip(out, expected, strict=True):
        torch.testing.assert_close(got, same, rtol=1e-13, atol=1e-13)


def test_arguments_are_left_as_they_are(randn):
    arguments = randn(9, 4), randn(4, 3), randn(3), randn(9, 3)
    before = [argument.clone() for argument in arguments]

    score(*arguments)

    assert all(map(torch.equal, arguments, before))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3,), (2, 2), (2,), (3, 2)), r"x and y must be \(N, D\) and \(N, K\), got \(3,\)"),
        (((4, 2), (2, 2), (2,), (3, 2)), r"x and y must be .* got \(4, 2\) and \(3, 2\)"),
        (((3, 2), (2, 3), (2,), (3, 2)), r"coef and intercept must be \(2, 2\) and \(2,\)"),
        (((3, 2), (2, 2), (3,), (3, 2)), r"got \(2, 2\) and \(3,\)"),
    ],
    ids=["x-no-matrix", "rows-differ", "coef", "intercept"],
)
def test_shapes_that_do_not_fit_are_named(shapes, message):
    with pytest.raises(ShapeError, match=message):
        score(*(torch.ones(shape) for shape in shapes))


def test_a_backend_without_an_implementation_is_refused_with_those_that_have_one():
    with pytest.raises(BackendError, match=r"score has no cuda implementation.*torch"):
        score.on("cuda")(torch.ones(2, 2), torch.ones(2, 2), torch.ones(2), torch.ones(2, 2))
