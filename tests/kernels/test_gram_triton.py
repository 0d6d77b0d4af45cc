"""The Triton kernels of ``gram_`` at the limits of their programs, in Triton's interpreter."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from fastprobe.kernels import gram
from fastprobe.kernels._planes import NEEDED, planes_of
from fastprobe.kernels._slots import slots_of
from fastprobe.kernels._table import table
from fastprobe.kernels.gram import GramConfig, launch_gram

GATE = 1e-6
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHORT = GramConfig(block_d=64, chain=64, block_n=32, flush=128)
"""Several flushes and slots with few rows."""

CPU = torch.device("cpu")


def moments(x, y, fold=None, origins=None, folds=1, pooled=False, config=SHORT, zero_origins=False):
    """Return x^T x, x^T y, then sums and squares of both, all (folds, ...) float64."""
    fold = torch.zeros(len(x), dtype=torch.int64) if fold is None else fold
    widths, pairs = (x.shape[1], y.shape[1]), [(0, 0), (0, 1)]
    grams = [torch.zeros(1 if pooled else folds, widths[i], widths[j], dtype=torch.float64) for i, j in pairs]
    sums, squares = ([torch.zeros(folds, width, dtype=torch.float64) for width in widths] for _ in range(2))
    origins = origins or [torch.zeros(width, dtype=torch.float64) for width in widths]
    blocks = list(zip((x, y), origins, sums, squares, strict=True))
    pairs = [(*pair, gram) for pair, gram in zip(pairs, grams, strict=True)]
    launch_gram(blocks, pairs, fold, config=config, zero_origins=zero_origins)
    return [grams[0].triu(), grams[1], *sums, *squares]


def assert_within_gate(got, x, y, gate=GATE):
    """Check the error of every entry relative to the norms of its columns; rows are float64."""
    norms, other = torch.linalg.vector_norm(x, dim=0), torch.linalg.vector_norm(y, dim=0)
    exact = [(x.mT @ x).triu(), x.mT @ y, x.sum(0), y.sum(0), x.square().sum(0), y.square().sum(0)]
    many = len(x) ** 0.5
    sizes = [torch.outer(norms, norms), torch.outer(norms, other), many * norms, many * other, norms**2, other**2]
    for ours, right, size in zip(got, exact, sizes, strict=True):
        assert ((ours - right).abs() <= gate * size).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 3, 65, 385])
def test_any_width(dtype, width, residual_rows, randn):
    x, y = residual_rows(50, width, dtype), randn(50, 2, dtype=dtype)

    got = moments(x, y, config=GramConfig())

    assert_within_gate([t[0] for t in got], x.double(), y.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 63, 129, 300])
def test_any_number_of_rows(dtype, n, residual_rows, randn):
    x, y = residual_rows(n, 20, dtype), randn(n, 9, dtype=dtype)

    assert_within_gate([t[0] for t in moments(x, y)], x.double(), y.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pooled", [False, True])
def test_rows_of_no_fold_do_not_matter_whatever_they_hold(dtype, pooled, residual_rows, randn, generator):
    x, y = residual_rows(600, 20, dtype), randn(600, 9, dtype=dtype)
    fold = torch.randint(-1, 3, (600,), generator=generator)
    dirty_x, dirty_y = x.clone(), y.clone()
    dirty_x[fold < 0], dirty_y[fold < 0] = float("nan"), float("inf")

    got = moments(dirty_x, dirty_y, fold, folds=4, pooled=pooled)

    for f in range(3):
        a, b = x[fold == f].double(), y[fold == f].double()
        if not pooled:
            assert_within_gate([t[f] for t in got], a, b)
        else:
            torch.testing.assert_close(got[2][f], a.sum(0), rtol=1e-6, atol=1e-3)
    if pooled:
        a, b = x[fold >= 0].double(), y[fold >= 0].double()
        assert_within_gate([got[0][0], got[1][0], *(t.sum(0) for t in got[2:])], a, b)
    assert not any(t[3].any() for t in got[2:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("origin", [30.0, 29.37])
def test_products_are_about_origins_with_every_digit(dtype, origin, randn):
    x, y = (randn(200, 20) + 30).to(dtype), randn(200, 9, dtype=dtype)
    x[::100] = x[::100] * 0.01  # far from the origin: more digits than two bfloat16 numbers have
    origins = [torch.full((20,), origin, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)]
    origins[0][3:] = 0

    got = moments(x, y, origins=origins)

    about = x.double() - origins[0].float().double()
    assert_within_gate([t[0] for t in got], about, y.double())


@pytest.mark.parametrize("dtypes", [(a, b) for a in DTYPES for b in DTYPES if a != b], ids=str)
def test_blocks_may_differ_in_dtype(dtypes, residual_rows, randn):
    x, y = residual_rows(200, 20, dtypes[0]), randn(200, 9, dtype=dtypes[1])

    assert_within_gate([t[0] for t in moments(x, y)], x.double(), y.double())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("zero_origins", [False, True])
def test_adjacent_rows_and_copies_of_scattered_rows_give_the_same_bits(dtype, zero_origins, residual_rows, randn):
    x, y = residual_rows(300, 70, dtype), randn(300, 9, dtype=dtype)
    fold = torch.arange(300) % 3
    adjacent = fold.argsort(stable=True)

    scattered = moments(x, y, fold, folds=3, zero_origins=zero_origins)
    slices = moments(x[adjacent], y[adjacent], fold[adjacent], folds=3, zero_origins=zero_origins)

    assert all(map(torch.equal, scattered, slices))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_configuration_gives_the_same_bits(dtype, residual_rows, randn):
    x, y = residual_rows(300, 70, dtype), randn(300, 9, dtype=dtype)
    fold = torch.arange(300) % 3 - 1

    first, second = (moments(x, y, fold, folds=2, config=replace(SHORT, descriptors=given)) for given in (True, False))

    assert all(map(torch.equal, first, second))


def test_two_planes_are_a_preview(residual_rows, randn):
    x, y = residual_rows(300, 20), randn(300, 9, dtype=torch.float32)
    preview = GramConfig(block_d=64, plane_count=2)

    error = (moments(x, y, config=preview)[0][0] - (x.double().mT @ x.double()).triu()).abs().max()

    size = float(torch.linalg.vector_norm(x.double(), dim=0).max()) ** 2
    assert 1e-9 * size < error < 1e-4 * size


def test_the_same_rows_give_the_same_bits(residual_rows, randn):
    x, y = residual_rows(300, 20), randn(300, 9, dtype=torch.bfloat16)
    fold = torch.arange(300) % 2

    assert all(map(torch.equal, moments(x, y, fold, folds=2), moments(x, y, fold, folds=2)))


@pytest.mark.parametrize("name", ["PLANE_BYTES", "WORKSPACE"])
def test_what_does_not_fit_into_memory_is_added_part_by_part(name, monkeypatch, residual_rows, randn):
    x, y = residual_rows(300, 20), randn(300, 9, dtype=torch.bfloat16)
    fold = torch.arange(300) % 2
    whole = moments(x, y, fold, folds=2)

    monkeypatch.setattr(gram, name, 1)

    for parts, once in zip(moments(x, y, fold, folds=2), whole, strict=True):
        torch.testing.assert_close(parts, once, rtol=1e-6, atol=1e-6 * float(once.abs().max()))


@pytest.mark.parametrize("unit", [None, 16])
@pytest.mark.parametrize("folds", [1, 3, 200])
def test_slots_hold_every_row_that_counts_once_and_one_fold_each(folds, unit, generator):
    fold = torch.randint(-2, folds + 1, (1000,), generator=generator)  # and one fold that is not there

    slots = slots_of(fold, folds, 64, unit)

    seen = []
    first = 0
    for f, last in enumerate(slots.fold_end.tolist()):
        for start, end in zip(slots.start[first:last].tolist(), slots.end[first:last].tolist(), strict=True):
            assert 0 < end - start <= 64
            seen += slots.order[start:end].tolist()
            assert (fold[slots.order[start:end]] == f).all()
        first = last
    assert (slots.start[first:] == slots.end[first:]).all()
    assert ((slots.start >= 0) & (slots.start <= len(fold))).all()  # also of slots without rows
    assert sorted(seen) == ((fold >= 0) & (fold < folds)).nonzero().flatten().tolist()


def test_a_table_holds_what_it_was_given():
    numbers = [0, 1, -1, 16, 2**59, -(2**59), *range(40)]

    assert table(numbers, CPU)[: len(numbers)].tolist() == numbers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_planes_add_up_to_the_numbers(dtype, residual_rows):
    rows = residual_rows(9, 21, dtype)

    planes = planes_of(rows, NEEDED[dtype])

    assert torch.equal(planes.double().sum(0)[:, :21], rows.double())
    assert not planes[:, :, 21:].any()
