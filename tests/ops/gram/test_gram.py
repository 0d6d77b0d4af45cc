"""``gram_``: every backend against float64, then its contract."""

import numpy as np
import pytest
import torch

from fastprobe.errors import BackendError, ShapeError
from fastprobe.ops._dispatch.operation import BACKENDS
from fastprobe.ops.gram import Block, Pair, gram_
from fastprobe.regression.spectrum import ACCUMULATION_ERROR

GATE = 1e-6  # largest error, relative to sqrt(G_ii G_jj)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    pytest.param((1, 1), id="one-number"),
    pytest.param((50, 7), id="narrower-than-a-panel"),
    pytest.param((300, 128), id="exactly-a-panel"),
    pytest.param((200, 300), id="ragged-over-panels"),
    pytest.param((5000, 130), id="several-chunks"),
]
PAIRS = [(0, 0), (0, 1), (1, 0)]


def arguments(x, y, fold, folds=1, pairs=PAIRS, pooled=False):
    """Return the arguments of ``gram_`` for two blocks, with sums of zero."""
    widths = [x.shape[1], y.shape[1]]
    return (
        [
            Block(rows, _float(width), _float(folds, width), _float(folds, width))
            for rows, width in zip((x, y), widths, strict=True)
        ],
        [Pair(i, j, _float(1 if pooled else folds, widths[i], widths[j])) for i, j in pairs],
        fold,
    )


def _float(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def one_fold(x):
    return torch.zeros(len(x), dtype=torch.int64)


def added(x, y, fold, folds=1, backend="auto", **kwargs):
    """Return the outputs of one call: grams, then sums, then squares."""
    args = arguments(x, y, fold, folds, **kwargs)
    gram_.on(backend)(*args)
    return defined(*args)


def defined(blocks, pairs, _):
    """Return grams, sums and squares, of pairs (i, i) only the upper triangle."""
    grams = [gram.triu() if i == j else gram for i, j, gram in pairs]
    return [*grams, *(block.sum for block in blocks), *(block.square for block in blocks)]


def same(ours, theirs, rtol=1e-12):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_within_the_gate(backend, dtype, shape, residual_rows, randn):
    n, d = shape
    if backend == "triton" and n * d > 50_000:
        pytest.skip(
            "triton: takes minutes in the interpreter; tests/kernels/test_gram_triton.py has several slots of few rows"
        )
    x, y = residual_rows(n, d, dtype), randn(n, d + 3, dtype=dtype)
    if reason := gram_.refusals(*arguments(x, y, one_fold(x)))[backend]:
        pytest.skip(f"{backend}: {reason}")

    xx, xy, yx, sum_x, sum_y, square_x, square_y = (t[0] for t in added(x, y, one_fold(x), backend=backend))

    x, y = x.double(), y.double()
    norm_x, norm_y = torch.linalg.vector_norm(x, dim=0), torch.linalg.vector_norm(y, dim=0)
    assert ((xx - (x.mT @ x).triu()).abs() / torch.outer(norm_x, norm_x)).max() <= GATE
    assert ((xy - x.mT @ y).abs() / torch.outer(norm_x, norm_y)).max() <= GATE
    assert ((yx - y.mT @ x).abs() / torch.outer(norm_y, norm_x)).max() <= GATE
    for rows, norm, total, square in ((x, norm_x, sum_x, square_x), (y, norm_y, sum_y, square_y)):
        assert ((total - rows.sum(0)).abs() / (norm * n**0.5)).max() <= GATE
        assert (square / norm.square() - 1).abs().max() <= GATE


@pytest.mark.parametrize("mean", [0, 30])
@pytest.mark.parametrize("n", [300, 2048, 5000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_entry_has_the_accuracy_that_error_bounds_assume(dtype, n, mean, randn):
    x, y = (randn(n, 40) + mean).to(dtype), randn(n, 24, dtype=dtype)

    xx, xy, _, _, _, square_x, _ = (t[0].numpy() for t in added(x, y, one_fold(x)))

    x, y = (rows.double().numpy().astype(np.longdouble) for rows in (x, y))
    norm_x, norm_y = np.sqrt((x * x).sum(0)), np.sqrt((y * y).sum(0))
    gamma = ACCUMULATION_ERROR[str(dtype).removeprefix("torch.")]
    assert np.abs((xx - np.triu(x.T @ x)) / np.outer(norm_x, norm_x)).max() <= gamma
    assert np.abs((xy - x.T @ y) / np.outer(norm_x, norm_y)).max() <= gamma
    assert np.abs(square_x / norm_x**2 - 1).max() <= gamma


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("n", [96, 480])
def test_a_few_rows_are_summed_in_short_chains_whose_errors_are_small(backend, n, randn):
    x = randn(n, 64, dtype=torch.float32) + 0.5
    args = arguments(x, x, one_fold(x), pairs=[(0, 0)])
    if reason := gram_.refusals(*args)[backend]:
        pytest.skip(f"{backend}: {reason}")

    gram_.on(backend)(*args)

    exact = x.double().mT @ x.double()
    norm = exact.diagonal().sqrt()
    errors = (args[1][0].gram[0] - exact).triu() / torch.outer(norm, norm)
    assert errors.square().mean().sqrt() < 1.6e-8  # in chains of 96 or 128: 1.8e-8 and more


def test_rows_left_out_do_not_matter_whatever_they_hold(residual_rows, generator):
    x, y = residual_rows(3000, 20), residual_rows(3000, 6)
    left_out = torch.rand(3000, generator=generator) < 0.3
    fold = torch.where(left_out, -1, torch.arange(3000) % 3)
    expected = added(x[~left_out], y[~left_out], fold[~left_out], folds=3)
    x[left_out], y[left_out] = float("nan"), float("inf")

    same(added(x, y, fold, folds=3), expected, rtol=1e-14)


def test_each_fold_sums_its_own_rows(randn):
    x, y = randn(500, 9), randn(500, 4)
    fold = (torch.arange(500) * 7) % 5

    xx, xy, yx, sum_x, _, square_x, _ = added(x, y, fold, folds=6)

    for f in range(5):
        a, b = x[fold == f], y[fold == f]
        same((xx[f], xy[f], yx[f], sum_x[f]), ((a.mT @ a).triu(), a.mT @ b, b.mT @ a, a.sum(0)))
        same((square_x[f],), (a.square().sum(0),))
    assert not xx[5].any()  # a fold without rows


def test_the_order_of_rows_and_folds_does_not_matter(residual_rows):
    x, y = residual_rows(4000, 11, torch.float64), residual_rows(4000, 5, torch.float64)
    fold = torch.arange(4000) % 3
    order = fold.argsort(stable=True)

    same(added(x[order], y[order], fold[order], folds=3), added(x, y, fold, folds=3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_may_have_any_strides(dtype, residual_rows):
    wide = residual_rows(260, 70, dtype)
    views = wide[:, 3:60:2], wide.mT.contiguous().mT[:, :33]
    fold = torch.arange(260) % 2

    # Same values in another layout: the same products, in another order at most.
    same(added(*views, fold, folds=2), added(*(v.contiguous() for v in views), fold, folds=2), rtol=1e-6)


def test_every_second_row_of_a_matrix_may_be_given(residual_rows):
    x, y = residual_rows(200, 6, torch.float64), residual_rows(200, 6, torch.float64)

    same(added(x[::2], y[::2], one_fold(x[::2])), added(x[::2].clone(), y[::2].clone(), one_fold(x[::2])))


def test_rows_are_left_as_they_are(residual_rows):
    x, y = residual_rows(30, 4), residual_rows(30, 3)
    before = x.clone(), y.clone()

    added(x, y, one_fold(x))

    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_a_pooled_gram_sums_all_folds(randn):
    x, y = randn(90, 5), randn(90, 3)
    fold = torch.arange(90) % 4 - 1

    xx, xy, *_ = added(x, y, fold, folds=3, pooled=True)

    kept = fold >= 0
    same((xx[0], xy[0]), ((x[kept].mT @ x[kept]).triu(), x[kept].mT @ y[kept]))


def test_sums_are_added_to_the_outputs(randn):
    x, y, fold = randn(40, 5), randn(40, 3), torch.arange(40) % 2
    args = arguments(x, y, fold, folds=2)
    for tensor in [t for block in args[0] for t in (block.sum, block.square)] + [pair.gram for pair in args[1]]:
        tensor += 7.0

    gram_(*args)

    once = added(x, y, fold, folds=2)
    expected = [t + 7 for t in once]
    expected[0] = expected[0].triu()
    same(defined(*args), expected)


@pytest.mark.parametrize("n", [0, 4])
def test_without_a_row_that_counts_nothing_is_added(n, randn):
    fold = torch.full((n,), -1, dtype=torch.int64)

    assert not any(t.any() for t in added(randn(n, 5), randn(n, 3), fold, folds=2))


def test_sums_that_are_not_wanted_are_left_out(randn):
    x, y = randn(20, 4), randn(20, 3)
    (first, second), pairs, fold = arguments(x, y, one_fold(x))

    gram_([first._replace(square=None), second._replace(sum=None)], pairs, fold)

    same((first.sum[0], second.square[0]), (x.sum(0), y.square().sum(0)))
    assert not first.square.any()
    assert not second.sum.any()


def test_a_block_without_sums_needs_no_memory_for_them(randn):
    x, gram = randn(20, 4), _float(1, 4, 4)

    gram_([Block(x, _float(4))], [Pair(0, 0, gram)], one_fold(x))

    same((gram[0].triu(),), ((x.mT @ x).triu(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_are_about_the_origins(dtype, randn):
    x, y = (randn(3000, 6) + 1000).to(dtype), (randn(3000, 4) - 50).to(dtype)
    args = arguments(x, y, one_fold(x))
    args[0][0].origin.fill_(1000.0)
    args[0][1].origin.fill_(-50.0)

    gram_(*args)

    xx, xy, _, sum_x, _, square_x, _ = (t[0] for t in defined(*args))
    a, b = x.double() - 1000, y.double() + 50
    # With a zero origin, the rounding of float32 would be 1e6 * 6e-8 of what varies.
    size = float(a.square().sum(0).max())
    for got, exact in ((xx, (a.mT @ a).triu()), (xy, a.mT @ b), (square_x, a.square().sum(0))):
        assert (got - exact).abs().max() <= GATE * size
    assert (sum_x - a.sum(0)).abs().max() <= GATE * size


def test_float16_rows_are_widened_before_they_are_multiplied():
    x = torch.full((10, 2), 300.0, dtype=torch.float16)  # 300^2 is over the largest float16

    xx, *_ = added(x, x, one_fold(x))

    assert xx[0, 0, 1] == 900_000


def test_a_float64_block_keeps_its_digits_beside_a_float32_block(randn):
    x, y = randn(3000, 5), randn(3000, 4, dtype=torch.float32)

    xx, xy, *_ = added(x, y, one_fold(x))

    same((xx[0], xy[0]), ((x.mT @ x).triu(), x.mT @ y.double()), rtol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_products_are_those_of_the_rows_widened_to_float64(dtype, residual_rows):
    x, y = residual_rows(3000, 20, dtype), residual_rows(3000, 7, dtype)
    args = arguments(x, y, one_fold(x))

    gram_(*args, exact=True)

    same(defined(*args), added(x.double(), y.double(), one_fold(x)), rtol=1e-13)


def test_exact_products_are_refused_where_sums_are_float32(randn):
    x = randn(4, 2, dtype=torch.float32)

    with pytest.raises(BackendError, match=r"'cpu': the C\+\+ kernels multiply in float32; .* run on: torch"):
        gram_.on("cpu")(*arguments(x, x, one_fold(x)), exact=True)


REFUSED = {
    "fold-dtype": ({"fold": torch.zeros(4)}, r"fold must be \(N,\) int64, got \(4,\) torch.float32"),
    "fold-shape": ({"fold": torch.zeros(4, 1, dtype=torch.int64)}, r"fold must be \(N,\) int64"),
    "rows-length": ({"rows": torch.ones(5, 2)}, r"blocks\[0\].rows must be \(4, D\) floating to match fold"),
    "rows-dtype": ({"rows": torch.ones(4, 2, dtype=torch.int64)}, r"got \(4, 2\) torch.int64"),
    "rows-dimensions": ({"rows": torch.ones(4)}, r"blocks\[0\].rows must be"),
    "origin-shape": ({"origin": _float(3)}, r"blocks\[0\].origin must be \(2,\) float64, got \(3,\) torch.float64"),
    "origin-dtype": ({"origin": torch.zeros(2)}, r"blocks\[0\].origin must be .* float64, got .*float32"),
    "gram-shape": ({"gram": _float(1, 2, 3)}, r"pairs\[0\].gram must be \(folds, 2, 2\) float64, got \(1, 2, 3\)"),
    "gram-dtype": ({"gram": torch.zeros(1, 2, 2)}, "float64, got .* torch.float32"),
    "sum-shape": ({"sum": _float(1, 3)}, r"blocks\[0\].sum must be \(folds, 2\) float64, got \(1, 3\)"),
    "square-dtype": ({"square": torch.zeros(1, 2)}, r"blocks\[0\].square must be .* float64, got .*float32"),
    "fold-of-no-sum": ({"fold": torch.arange(4)}, "fold must be below 1, the folds of the sums, got 3"),
    "pair": ({"j": 1}, r"pairs\[0\] must name two of the 1 blocks, got \(0, 1\)"),
    "pair-from-the-end": ({"i": -1}, r"pairs\[0\] must name two of the 1 blocks, got \(-1, 0\)"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_arguments_that_do_not_fit_are_named(change, message):
    block = Block(torch.ones(4, 2), _float(2), _float(1, 2), _float(1, 2))
    pair = Pair(0, 0, _float(1, 2, 2))
    block, pair = (part._replace(**{k: change[k] for k in change.keys() & part._fields}) for part in (block, pair))

    with pytest.raises(ShapeError, match=message):
        gram_([block], [pair], change.get("fold", torch.zeros(4, dtype=torch.int64)))


def test_a_forced_backend_never_falls_back():
    x = torch.ones(4, 2)

    with pytest.raises(BackendError, match=r"cuda': a tensor is on cpu, not on a GPU; .* run on: .*torch"):
        gram_.on("cuda")(*arguments(x, x, one_fold(x)))
