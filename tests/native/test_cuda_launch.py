"""The CUDA backend of ``gram_``, from its arguments to its sums, with its kernels run by threads of the CPU."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastprobe.ops._dispatch import trial_process
from fastprobe.ops.gram import Block, Pair, cuda, cuda_launches, gram_, origins
from fastprobe.ops.gram.cuda_launches import SLAB
from fastprobe.ops.gram.trial import error_of_a_trial
from tests.native.cuda_on_host import simulator


@pytest.fixture
def library(monkeypatch):
    """Replace ``fastprobe._cuda`` by a simulated GPU of three multiprocessors."""
    library = simulator() or pytest.skip("no nvcc")
    monkeypatch.setattr(cuda, "library", lambda: library)
    monkeypatch.setattr(cuda_launches, "PART", 1)  # several parts even for the few rows of a test
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=3))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    return library


def arguments(rows, pairs, fold, folds, pooled=()):
    """Return blocks and pairs whose sums are ones and whose origins are zero, and the folds."""
    widths = [block.shape[1] for block in rows]

    def ones(*shape):
        return torch.ones(shape, dtype=torch.float64)

    blocks = [
        Block(block, 0 * ones(width), ones(folds, width), ones(folds, width))
        for block, width in zip(rows, widths, strict=True)
    ]
    return blocks, [Pair(i, j, ones(1 if (i, j) in pooled else folds, widths[i], widths[j])) for i, j in pairs], fold


def copied(blocks, pairs, fold):
    copies = [[t if t is None else t.clone() for t in (block.sum, block.square)] for block in blocks]
    blocks = [Block(block.rows, block.origin, *totals) for block, totals in zip(blocks, copies, strict=True)]
    return blocks, [pair._replace(gram=pair.gram.clone()) for pair in pairs], fold


def assert_same_as_the_definition(blocks, pairs, fold, exact=False):
    """Compare with the definition in float64. In float32 a chain is rounded, and so is every sum of chains."""
    expected = copied(blocks, pairs, fold)
    gram_.on("torch")(*expected, exact=True)
    cuda.launch_gram(blocks, pairs, fold, exact=exact)
    z = [(block.rows.double() - block.origin)[fold >= 0].nan_to_num() for block in blocks]
    norms = [torch.linalg.vector_norm(block, dim=0) for block in z]
    for (i, j, gram), other in zip(pairs, expected[1], strict=True):
        error = (gram - other.gram).abs() / (torch.outer(norms[i], norms[j]) + 1e-9)
        bound = 1e-13 if exact else (1 + -(-len(fold) // SLAB)) * 2.0**-24
        assert (error.triu() if i == j else error).max() <= bound
    for ours, right in zip(blocks, expected[0], strict=True):
        for total, other in zip(ours[2:], right[2:], strict=True):
            if total is not None:
                torch.testing.assert_close(total, other, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_products_and_sums_of_16_bit_rows(library, dtype, folds, masked, residual_rows):
    rows = [residual_rows(400, width, dtype) for width in (136, 64, 8)]
    fold = torch.arange(400) % folds
    if masked:
        fold[::7] = -1
        for block in rows:
            block[::7] = float("nan")

    assert_same_as_the_definition(*arguments(rows, [(0, 0), (0, 1), (2, 0)], fold, folds))


@pytest.mark.parametrize(
    ("n", "pairs"), [(4500, [(0, 0), (0, 1), (2, 2)]), (13_000, [(0, 0)])], ids=["whole", "in parts"]
)
def test_sums_of_many_chains_go_to_float64_in_between(library, n, pairs, residual_rows):
    rows = [residual_rows(n, width, torch.bfloat16) for width in (128, 128, 8)]
    fold = torch.zeros(n, dtype=torch.int64)
    blocks, grams, _ = arguments(rows, pairs, fold, folds=1)
    exact = [gram.gram[0] + rows[i].double().mT @ rows[j].double() for (i, j), gram in zip(pairs, grams, strict=True)]

    cuda.launch_gram(blocks, grams, fold)

    norms = [torch.linalg.vector_norm(block.double(), dim=0) for block in rows]
    for (i, j, gram), right in zip(grams, exact, strict=True):
        error = (gram[0] - right).abs() / torch.outer(norms[i], norms[j])
        assert (error.triu() if i == j else error).max() <= 2e-7


@pytest.mark.parametrize("folds", [1, 2])
def test_rows_that_the_copy_engine_cannot_read_are_gathered(library, folds, randn):
    wide = randn(300, 200, dtype=torch.bfloat16)
    rows = [wide[:, :50], wide[:, 3:103:2], wide.mT.contiguous().mT[:, :9], wide[::2].repeat(2, 1)[:, 1:2]]
    assert sum(cuda_launches.fits_the_copy_engine(block) for block in rows) == 1

    assert_same_as_the_definition(*arguments(rows, [(0, 0), (1, 2), (3, 1)], torch.arange(300) % folds, folds))


@pytest.mark.parametrize(
    "dtypes",
    [("float64", "float64"), ("float32", "bfloat16"), ("float16", "float32"), ("bfloat16", "bfloat16")],
    ids="-".join,
)
def test_exact_products_of_any_rows_about_origins(library, dtypes, residual_rows):
    rows = [residual_rows(300, width, getattr(torch, dtype)) for width, dtype in zip((70, 65), dtypes, strict=True)]
    fold = torch.arange(300) % 4 - 1
    rows[0][fold < 0] = float("nan")
    args = arguments(rows, [(0, 0), (0, 1), (1, 1)], fold, folds=3)
    args[0][0].origin.fill_(29.5)

    assert_same_as_the_definition(*args, exact=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pairs", [[(0, 0)], [(0, 1), (1, 0)], [(0, 0), (0, 2), (2, 2)]], ids=str)
def test_two_planes_hold_every_digit_of_16_bit_rows_about_origins(library, dtype, pairs, randn):
    rows = [randn(300, width, dtype=dtype) for width in (140, 70, 9)]
    fold = torch.arange(300) % 3 - 1
    args = arguments(rows, pairs, fold, folds=2)
    for block, column, mean in ((0, 5, 30.0), (0, 139, -7.0), (1, 0, 1000.0), (1, 64, 9.0)):
        rows[block][:, column] += mean
        rows[block][::11, column] = randn(28, dtype=dtype) * 2.0**-6  # far from the mean, with finer digits
        args[0][block].origin[column] = mean

    assert_same_as_the_definition(*args)


@pytest.mark.parametrize("exact", [False, True])
def test_a_gram_of_all_folds_beside_grams_by_fold(library, exact, randn):
    rows = [randn(500, 130, dtype=torch.bfloat16), randn(500, 20, dtype=torch.bfloat16)]
    pairs, fold = [(0, 0), (0, 1), (1, 1)], torch.arange(500) % 3 - 1
    (first, second), *rest = arguments(rows, pairs, fold, folds=2, pooled=[(0, 1), (1, 1)])

    assert_same_as_the_definition([first._replace(sum=None), second._replace(square=None)], *rest, exact=exact)


@pytest.mark.slow
def test_more_pairs_than_one_launch_takes(library, randn):
    rows = [randn(130, 8, dtype=torch.float16) for _ in range(9)]
    pairs = [(i, j) for i in range(9) for j in range(i, 9)]

    assert_same_as_the_definition(*arguments(rows, pairs, torch.zeros(130, dtype=torch.int64), folds=1))


def test_sums_without_products_and_products_without_sums(library, randn):
    rows = [randn(200, 40, dtype=torch.bfloat16)]
    fold = torch.arange(200) % 2
    blocks, pairs, _ = arguments(rows, [(0, 0)], fold, folds=2)

    assert_same_as_the_definition(blocks, [], fold)
    assert_same_as_the_definition([Block(*block[:2]) for block in blocks], pairs, fold)


@pytest.mark.parametrize("n", [0, 5])
def test_without_a_row_that_counts_nothing_is_added(library, n, randn):
    rows = [randn(n, 16, dtype=torch.bfloat16)]

    assert_same_as_the_definition(*arguments(rows, [(0, 0)], torch.full((n,), -1), folds=2))


def test_a_gram_may_be_part_of_a_wider_matrix(library, randn):
    rows = [randn(150, 24, dtype=torch.bfloat16)]
    blocks, _, fold = arguments(rows, [], torch.arange(150) % 2, folds=2)
    around = torch.full((2, 40, 50), -7.0, dtype=torch.float64)
    gram = around[:, 5:29, 9:33]
    gram.zero_()

    assert_same_as_the_definition(blocks, [Pair(0, 0, gram)], fold)

    gram.fill_(-7.0)
    assert (around == -7.0).all()


@pytest.mark.slow
def test_a_trial_tells_right_sums_from_wrong_ones(library, monkeypatch):
    cpu = torch.device("cpu")

    assert error_of_a_trial(cuda.launch_gram, cpu) < 3e-7
    assert error_of_a_trial(partial(cuda.launch_gram, exact=True), cpu) < 1e-13

    monkeypatch.setattr(library, "gram", lambda **arguments: None)  # a kernel that does nothing
    assert error_of_a_trial(cuda.launch_gram, cpu) > 0.1


# -- refusals ---------------------------------------------------------------------------------------------------------


def reason(rows, exact=False, gram=None, device="cuda:0"):
    """Return the refusal of rows on a GPU, which need not exist."""
    fold = torch.zeros(len(rows[0]), dtype=torch.int64, device=device)
    if gram is None:
        gram = torch.zeros(1, rows[0].shape[1], rows[0].shape[1], dtype=torch.float64, device=device)
    blocks = [Block(r, torch.zeros(r.shape[1], dtype=torch.float64, device=r.device)) for r in rows]
    return gram_.refusals(blocks, [Pair(0, 0, gram)], fold, exact=exact)["cuda"]


@pytest.fixture
def hopper(library, monkeypatch):
    """Make torch report a GPU of compute capability 9.0."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(trial_process, "result_of", lambda trial, device: 1e-13)
    exactly = origins.Moved(torch.empty(0), frozenset({torch.float16, torch.bfloat16}), 0)
    monkeypatch.setattr(cuda, "moved_by", lambda origin: exactly)
    cuda._device_refuses.cache_clear()
    yield
    cuda._device_refuses.cache_clear()


@pytest.fixture
def on_gpu():
    with FakeTensorMode():
        yield lambda *shape, dtype=torch.bfloat16: torch.empty(*shape, dtype=dtype, device="cuda:0")


def test_16_bit_rows_on_hopper_are_taken(hopper, on_gpu):
    assert reason([on_gpu(10, 8)]) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_any_rows_are_taken_in_float64(hopper, on_gpu, dtype):
    assert reason([on_gpu(10, 7, dtype=dtype)], exact=True) is None


def test_float64_rows_are_multiplied_in_float64(hopper, on_gpu):
    assert reason([on_gpu(10, 7, dtype=torch.float64)]) is None


def test_every_refusal_has_its_reason(hopper, on_gpu, monkeypatch):
    x, y = on_gpu(10, 8), on_gpu(10, 8, dtype=torch.float32)
    gram = on_gpu(1, 8, 8, dtype=torch.float64)

    assert reason([torch.empty(10, 8)], device="cpu") == "a tensor is on cpu, not on a GPU"
    assert reason([x, x.to("cuda:1")]) == "tensors are on cuda:0 and on cuda:1"
    assert reason([y]).startswith("it takes bfloat16 rows or float16 rows, not float32 (exact=True")
    assert reason([x, y]).startswith("it takes bfloat16 rows or float16 rows, not bfloat16 and float32")
    assert reason([x], gram=gram.mT) == "the columns of a gram must be adjacent"
    assert reason([on_gpu(10, 0)]) == "a block of rows has no columns"
    monkeypatch.setattr(cuda, "moved_by", lambda origin: origins.Moved(origin, frozenset({torch.float16}), 0))
    assert reason([x]) == "bfloat16 cannot represent blocks[0].origin exactly"


def test_a_gpu_that_the_build_is_not_for_is_named(hopper, on_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))

    assert reason([on_gpu(10, 8)]) == "wgmma is for compute capability 9.0; cuda:0 has 8.0"
    assert reason([on_gpu(10, 8)], exact=True) == "fastprobe._cuda was built for 9.0a; cuda:0 has 8.0"


def test_a_kernel_that_differs_from_torch_is_not_used(hopper, on_gpu, monkeypatch):
    monkeypatch.setattr(trial_process, "result_of", lambda trial, device: 2e-6)

    assert reason([on_gpu(10, 8)]) == "on cuda:0 its sums differ from torch's by 2.0e-06 of their size"


def test_a_missing_build_is_refused_with_the_command_that_builds_it(on_gpu, monkeypatch):
    monkeypatch.setattr(cuda, "library", lambda: None)

    assert reason([on_gpu(10, 8)]).startswith("fastprobe._cuda was not built; with nvcc, `FASTPROBE_BUILD=cuda pip")


def test_origins_and_rows_may_be_made_in_inference_mode(library, randn):
    with torch.inference_mode():
        rows = [randn(200, 40, dtype=torch.bfloat16)]
        blocks, pairs, fold = arguments(rows, [(0, 0)], torch.arange(200) % 2, folds=2)

        assert_same_as_the_definition(blocks, pairs, fold)

        blocks[0].origin[3] = 2.0
        assert_same_as_the_definition(blocks, pairs, fold)


def test_an_origin_is_read_once_unless_it_changes():
    origin = torch.zeros(3)

    assert not len(origins.moved_by(origin).columns)
    origin[1] = 2.0
    assert origins.moved_by(origin).columns.tolist() == [1]
    assert origins.moved_by(origin) is origins.moved_by(origin)
    assert torch.bfloat16 in origins.moved_by(origin).fits
    origin[1] = 1 + 2**-9  # a number of float16 only
    assert origins.moved_by(origin).fits == {torch.float16}
