"""The CUDA kernels on a GPU: accuracy against float64, and the contract of ``gram_``. ``make gpu`` runs this."""

import pytest
import torch

from fastprobe.ops.gram import Block, Pair, gram_
from fastprobe.ops.gram.cuda import launch_gram

GATE = {False: 1e-6, True: 1e-13}  # of sqrt(G_ii G_jj); exact or not
DTYPES = [torch.bfloat16, torch.float16]

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


@pytest.fixture
def rows(residual_rows):
    """``rows(n, d, dtype)`` on the GPU, as a residual stream has them."""
    return lambda n, d, dtype=torch.bfloat16: residual_rows(n, d, dtype).cuda()


def arguments(rows, pairs, fold=None, folds=1):
    fold = torch.zeros(len(rows[0]), dtype=torch.int64, device="cuda") if fold is None else fold
    widths = [block.shape[1] for block in rows]

    def zeros(*shape):
        return torch.zeros(shape, dtype=torch.float64, device="cuda")

    blocks = [
        Block(block, zeros(width), zeros(folds, width), zeros(folds, width))
        for block, width in zip(rows, widths, strict=True)
    ]
    return blocks, [Pair(i, j, zeros(folds, widths[i], widths[j])) for i, j in pairs], fold


def outputs(blocks, pairs, _):
    return [*(pair.gram for pair in pairs), *(total for block in blocks for total in (block.sum, block.square))]


def run(args, exact=False):
    if reason := gram_.refusals(*args, exact=exact)["cuda"]:
        pytest.skip(f"cuda: {reason}")
    gram_.on("cuda")(*args, exact=exact)


def assert_within_gate(args, exact=False):
    """Check the error of every entry, relative to the norms of its columns in its fold."""
    blocks, pairs, fold = args
    for f in range(len(pairs[0].gram)):
        kept = [block.rows[fold == f].double() for block in blocks]
        norms = [torch.linalg.vector_norm(block, dim=0) for block in kept]
        for i, j, gram in pairs:
            error = (gram[f] - kept[i].mT @ kept[j]).abs() / torch.outer(norms[i], norms[j])
            assert (error.triu() if i == j else error).max() <= GATE[exact]
        for rows, norm, block in zip(kept, norms, blocks, strict=True):
            assert ((block.sum[f] - rows.sum(0)).abs() <= 1e-12 * norm * len(rows) ** 0.5).all()
            assert ((block.square[f] - norm.square()).abs() <= 1e-12 * norm.square()).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("widths", [(1, 8), (64, 128), (136, 384), (130, 45), (768, 768)], ids=str)
@pytest.mark.parametrize("n", [1, 127, 129, 5000, 70_000])
def test_within_the_gate(rows, dtype, widths, n):
    args = arguments([rows(n, width, dtype) for width in widths], [(0, 0), (0, 1), (1, 0), (1, 1)])

    run(args)

    assert_within_gate(args)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("folds", [1, 5])
def test_folds_and_rows_that_are_left_out(rows, folds, exact):
    fold = (torch.arange(9000, device="cuda") // 100) % folds
    fold[::13] = -1
    blocks = [rows(9000, width) for width in (200, 72)]
    for block in blocks:
        block[fold < 0] = float("nan")
    args = arguments(blocks, [(0, 0), (0, 1)], fold, folds)

    run(args, exact)

    assert_within_gate(args, exact)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32, torch.float64], ids=str)
def test_exact_products_have_the_digits_of_float64(rows, dtype):
    args = arguments([rows(20_000, width, dtype) for width in (100, 70)], [(0, 0), (0, 1)])

    run(args, exact=True)

    assert_within_gate(args, exact=True)


@pytest.mark.parametrize("exact", [False, True])
def test_the_same_input_gives_the_same_bits(rows, exact):
    blocks = [rows(100_000, 200), rows(100_000, 384)]
    results = []
    for _ in range(3):
        args = arguments(blocks, [(0, 0), (0, 1)])
        run(args, exact)
        results.append(outputs(*args))

    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("power", range(12, 23, 2))
def test_a_column_of_one_sign_does_not_come_out_low(power):
    """Long chains in the tensor core would make it low: see csrc/cuda/gram.cuh, Precision."""
    block = (1 + torch.rand(2**power, 8, device="cuda") / 8).bfloat16()
    args = arguments([block], [(0, 0)])

    run(args)

    assert_within_gate(args)


def test_it_runs_on_the_current_stream_and_leaves_the_device_as_it_was(rows):
    """A launch on another stream reads the rows before they are doubled.

    The launch by itself: the check of ``gram_`` reads the largest fold, and so waits for the doubling.
    """
    args = arguments([rows(5000, 128)], [(0, 0)])
    run(args)  # loads and tries the kernels, and reads the origins
    for total in outputs(*args):
        total.zero_()
    device, stream = torch.cuda.current_device(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())

    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)
        args[0][0].rows.mul_(2)
        launch_gram(*args)
    stream.synchronize()

    assert torch.cuda.current_device() == device
    assert_within_gate(args)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("folds", [1, 3])
def test_a_graph_may_hold_the_launch(rows, folds, exact):
    """The launch by itself, as the check of ``gram_`` reads the largest fold; after a call that reads the origins."""
    fold = torch.arange(4000, device="cuda") % folds
    block = rows(4000, 136)
    args = arguments([block], [(0, 0)], fold, folds)
    run(args, exact)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch_gram(*args, exact=exact)
    block.copy_(rows(4000, 136) / 2)
    for total in outputs(*args):
        total.zero_()

    graph.replay()

    assert_within_gate(args, exact)


def test_nothing_is_written_outside_the_sums(rows):
    blocks, _, fold = arguments([rows(6000, 200)], [])
    around = torch.full((1, 300, 300), -7.0, dtype=torch.float64, device="cuda")
    gram = around[:, 50:250, 30:230]
    gram.zero_()
    args = blocks, [Pair(0, 0, gram)], fold

    run(args)

    assert_within_gate(args)
    gram.fill_(-7.0)
    assert (around == -7.0).all()
