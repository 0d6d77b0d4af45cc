"""The C++ kernels on every instruction set of this processor, at the limits of what they read and write."""

import pytest
import torch

from fastprobe.errors import BackendError
from fastprobe.ops._dispatch.cpu_library import instruction_set, instruction_sets
from fastprobe.ops.gram import Block, Pair, gram_
from fastprobe.ops.score import score

ISAS = instruction_sets()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
WIDTHS = [1, 3, 32, 65, 385]  # under a panel, exactly one, ragged over several
TOKENS = [1, 2, 127, 129, 1025, 2500]  # around a chain of 128 and a chunk of 2,048
GATE = 1e-6


@pytest.fixture(params=ISAS or [pytest.param("", marks=pytest.mark.skip(reason="fastprobe._cpu was not built"))])
def isa(request):
    with instruction_set(request.param):
        yield request.param


def gram_of(x, y, fold=None, origins=(None, None), folds=1):
    """Return x^T x, x^T y, then sums and squares of both, all (folds, ...) float64."""
    fold = torch.zeros(len(x), dtype=torch.int64) if fold is None else fold
    widths, pairs = (x.shape[1], y.shape[1]), [(0, 0), (0, 1)]
    grams = [torch.zeros(folds, widths[i], widths[j], dtype=torch.float64) for i, j in pairs]
    sums, squares = ([torch.zeros(folds, w, dtype=torch.float64) for w in widths] for _ in range(2))
    origins = [torch.zeros(w, dtype=torch.float64) if o is None else o for o, w in zip(origins, widths, strict=True)]
    blocks = [Block(*block) for block in zip((x, y), origins, sums, squares, strict=True)]
    gram_.on("cpu")(blocks, [Pair(*pair, gram) for pair, gram in zip(pairs, grams, strict=True)], fold)
    return [grams[0].triu(), grams[1], *sums, *squares]


def exact_of(x, y):
    x, y = x.double(), y.double()
    return [(x.mT @ x).triu(), x.mT @ y, x.sum(0), y.sum(0), x.square().sum(0), y.square().sum(0)]


def assert_within_gate(got, x, y):
    """Check errors: of products and squares relative to the norms of their columns, of sums to sqrt(N) norms."""
    x_norm, y_norm = (torch.linalg.vector_norm(rows.double(), dim=0) for rows in (x, y))
    many = len(x) ** 0.5
    sizes = [x_norm[:, None] * x_norm, x_norm[:, None] * y_norm, many * x_norm, many * y_norm, x_norm**2, y_norm**2]
    for ours, exact, size in zip(got, exact_of(x, y), sizes, strict=True):
        assert ((ours[0] - exact).abs() <= GATE * size).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_gram_of_any_width(isa, dtype, width, residual_rows, randn):
    x, y = residual_rows(300, width, dtype), randn(300, width + 1, dtype=dtype)

    assert_within_gate(gram_of(x, y), x, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", TOKENS)
def test_gram_of_any_number_of_tokens(isa, dtype, n, residual_rows, randn):
    x, y = residual_rows(n, 40, dtype), randn(n, 33, dtype=dtype)

    assert_within_gate(gram_of(x, y), x, y)


@pytest.mark.slow
def test_gram_of_a_wide_block(isa, randn):
    x, y = randn(64, 3073, dtype=torch.bfloat16), randn(64, 3, dtype=torch.bfloat16)

    assert_within_gate(gram_of(x, y), x, y)


@pytest.mark.parametrize(("left", "right"), [("bfloat16", "float32"), ("float16", "bfloat16")])
def test_blocks_of_two_dtypes(isa, left, right, residual_rows):
    x, y = residual_rows(200, 40, getattr(torch, left)), residual_rows(200, 50, getattr(torch, right))

    assert_within_gate(gram_of(x, y), x, y)


def test_an_origin_in_one_panel_only(isa, randn):
    """Panels about zero are multiplied as pairs of bfloat16, others as floats; some are needed as both."""
    x, y = randn(500, 100, dtype=torch.bfloat16), randn(500, 70, dtype=torch.bfloat16)
    x[:, 40] += 200
    origin = torch.zeros(100, dtype=torch.float64)
    origin[40] = 200

    got = gram_of(x, y, origins=(origin, None))

    assert_within_gate(got, x.double() - origin, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_addresses_need_not_be_aligned(isa, dtype, residual_rows):
    wide = residual_rows(150, 100, dtype)
    x, y = wide[1:, 1:48], wide[1:, 49:99:2]

    assert_within_gate(gram_of(x, y), x, y)


def test_rows_may_lie_beyond_two_to_the_31_elements(isa, residual_rows):
    rows = residual_rows(3, 40, torch.bfloat16)
    x = torch.empty(2**31 + 40, dtype=torch.bfloat16).as_strided((3, 40), (2**30, 1))  # most of it is never touched
    x.copy_(rows)

    assert_within_gate(gram_of(x, x), rows, rows)
    out = score.on("cpu")(x, torch.eye(40), torch.zeros(40), x)
    torch.testing.assert_close(out.y_squares, rows.float().square().sum(1))


def test_rows_may_be_stored_by_column(isa, residual_rows):
    x, y = residual_rows(40, 150).mT, residual_rows(50, 150).mT

    assert_within_gate(gram_of(x, y), x, y)


def test_a_row_may_be_repeated_by_a_stride_of_zero(isa, randn):
    x, y = randn(1, 40, dtype=torch.bfloat16).expand(100, 40), randn(100, 5, dtype=torch.bfloat16)

    assert_within_gate(gram_of(x, y), x, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_beside_the_rows_is_never_used(isa, dtype, residual_rows):
    """The view has NaN on all sides: before and after its rows and columns, and after its last vector."""
    around = torch.full((170, 90), float("nan"), dtype=dtype)
    around[10:160, 7:82] = residual_rows(150, 75, dtype)
    x = around[10:160, 7:82]

    assert_within_gate(gram_of(x, x), x, x)
    assert score.on("cpu")(x, torch.eye(75), torch.zeros(75), x).error.max() <= 1e-6 * x.float().square().sum(1).max()


def test_nothing_is_written_outside_the_sums(isa, randn):
    around = torch.full((2, 50, 60), -1.0, dtype=torch.float64)
    gram = around[:, 5:45, 3:43]
    gram.zero_()
    block = Block(randn(200, 40, dtype=torch.float32), torch.zeros(40, dtype=torch.float64))

    gram_.on("cpu")([block], [Pair(0, 0, gram)], torch.arange(200) % 2)

    gram.fill_(-1.0)
    assert (around == -1.0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_number_of_threads_changes_nothing(isa, dtype, residual_rows):
    x, y, fold = residual_rows(1500, 130, dtype), residual_rows(1500, 70, dtype), torch.arange(1500) % 3
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append([*gram_of(x, y, fold, folds=3), *score.on("cpu")(x, torch.ones(130, 70), torch.ones(70), y)])
    finally:
        torch.set_num_threads(before)

    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_infinities_of_float16_stay_infinite(isa):
    x = torch.tensor([[float("inf")], [1.0]], dtype=torch.float16)

    _, _, total, *_ = gram_of(x, x)

    assert total.item() == float("inf")


def test_every_float16_is_read_as_it_is(isa):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    every = every[every.isfinite()].reshape(-1, 1)
    one_hot = torch.arange(len(every))  # a fold each: sums are the numbers themselves

    _, _, total, *_ = gram_of(every, every[:, :1], one_hot, folds=len(every))

    assert torch.equal(total, every.double())


@pytest.mark.parametrize("depth", [1, 3, 129, 300])
@pytest.mark.parametrize("n", [1, 31, 33, 100])
def test_score_at_any_size(isa, n, depth, randn):
    x, y = randn(n, depth, dtype=torch.float32), randn(n, 37, dtype=torch.float32)
    coef, intercept = randn(depth, 37) / depth**0.5, randn(37)

    out = score.on("cpu")(x, coef, intercept, y)

    p, y = x.double() @ coef.float().double() + intercept.float(), y.double()
    size = (p.abs() + y.abs()).square().sum(1)
    for got, exact in zip(out, (p * y, p * p, y * y, (y - p) ** 2), strict=True):
        assert ((got - exact.sum(1)).abs() <= 1e-6 * size).all()


def test_a_missing_instruction_set_is_named():
    with pytest.raises(BackendError, match=r"'mmx' is not one of"), instruction_set("mmx"):
        pass
