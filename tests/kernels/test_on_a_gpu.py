"""The Triton kernels on a GPU: what no interpreter shows. ``make gpu`` runs this; elsewhere it is skipped."""

import pytest
import torch

from fastprobe.ops.gram import Block, Pair, gram_
from fastprobe.ops.gram.triton import launch_gram
from fastprobe.ops.score import ResidualSums, score

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
GATE = 1e-6
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PAIRS = [(0, 0), (0, 1)]


def arguments(x, y, fold, folds, origins=(None, None)):
    """Blocks and pairs with cleared sums, and the folds."""

    def zeros(*shape):
        return torch.zeros(shape, dtype=torch.float64, device=x.device)

    widths = x.shape[1], y.shape[1]
    blocks = [
        Block(rows, zeros(width) if origin is None else origin, zeros(folds, width), zeros(folds, width))
        for rows, width, origin in zip((x, y), widths, origins, strict=True)
    ]
    return blocks, [Pair(i, j, zeros(folds, widths[i], widths[j])) for i, j in PAIRS], fold


def outputs(blocks, pairs, _):
    """Every tensor of sums, with the upper triangle where only that counts."""
    grams = [gram.triu() if i == j else gram for i, j, gram in pairs]
    return [*grams, *(total for block in blocks for total in (block.sum, block.square))]


def assert_within_gate(args, folds):
    blocks, pairs, fold = args
    (x, y), origins, totals, squares = zip(*blocks, strict=True)
    grams = [pair.gram for pair in pairs]
    for f in range(folds):
        a, b = ((rows[fold == f].double() - o.float().double()) for rows, o in zip((x, y), origins, strict=True))
        na, nb = torch.linalg.vector_norm(a, dim=0), torch.linalg.vector_norm(b, dim=0)
        assert ((grams[0][f] - a.mT @ a).abs() / torch.outer(na, na)).triu().max() <= GATE
        assert ((grams[1][f] - a.mT @ b).abs() / torch.outer(na, nb)).max() <= GATE
        for total, square, rows, norm in zip(totals, squares, (a, b), (na, nb), strict=True):
            assert ((total[f] - rows.sum(0)).abs() <= GATE * norm * len(rows) ** 0.5).all()
            assert (square[f] / norm.square() - 1).abs().max() <= GATE


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (70, 65), (5000, 385), (40_000, 768)], ids=str)
def test_gram_keeps_the_gate(dtype, shape, residual_rows, randn):
    n, d = shape
    x, y = residual_rows(n, d, dtype).cuda(), randn(n, d + 3, dtype=dtype).cuda()
    args = arguments(x, y, torch.zeros(n, dtype=torch.int64, device="cuda"), 1)

    gram_.on("triton")(*args)

    assert_within_gate(args, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_folds_masks_and_origins(dtype, randn, generator):
    x, y = (randn(9000, 200) + 30).to(dtype).cuda(), randn(9000, 70, dtype=dtype).cuda()
    fold = torch.randint(-1, 5, (9000,), generator=generator).cuda()
    x[fold < 0] = float("nan")
    origins = [torch.full((200,), 29.37, dtype=torch.float64), torch.zeros(70, dtype=torch.float64)]
    args = arguments(x, y, fold, 5, [origin.cuda() for origin in origins])

    gram_.on("triton")(*args)

    assert_within_gate(args, 5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_rows_give_the_same_bits(dtype, residual_rows, randn):
    x, y = residual_rows(20_000, 384, dtype).cuda(), randn(20_000, 384, dtype=dtype).cuda()
    fold = (torch.arange(20_000) % 3).cuda()
    runs = [arguments(x, y, fold, 3) for _ in range(3)]

    for args in runs:
        gram_.on("triton")(*args)

    for args in runs[1:]:
        assert all(map(torch.equal, outputs(*args), outputs(*runs[0])))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_configuration_gives_the_same_bits(dtype, residual_rows, randn):
    from fastprobe.kernels import gram
    from fastprobe.kernels import score as kernels

    x, y = residual_rows(20_000, 384, dtype).cuda(), randn(20_000, 130, dtype=dtype).cuda()
    coef, intercept = randn(384, 130).cuda(), randn(130).cuda()
    at = torch.cuda.get_device_capability()

    sums = [arguments(x, y, (torch.arange(20_000) % 3).cuda(), 3) for _ in gram.configs(at)]
    for args, config in zip(sums, gram.configs(at), strict=True):
        gram.launch_gram(*args, config=config)
    scores = [kernels.launch_score(x, coef, intercept, y, config=config) for config in kernels.configs(at)]

    for args in sums[1:]:
        assert all(map(torch.equal, outputs(*args), outputs(*sums[0])))
    assert all(torch.equal(other, scores[0]) for other in scores[1:])


def test_a_cuda_graph_adds_the_rows_of_the_moment(residual_rows, randn):
    x, y = residual_rows(5000, 130).cuda(), randn(5000, 66, dtype=torch.float32).cuda()
    fold = (torch.arange(5000) % 2).cuda()
    args = arguments(x, y, fold, 2)
    gram_.on("triton")(*args)  # compiles, and keeps the tiles of these widths
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        gram_.on("triton")(*args)
    x.copy_(randn(5000, 130))
    fold.copy_(1 - fold)
    fold[:100] = -1
    for total in [pair.gram for pair in args[1]] + [t for block in args[0] for t in (block.sum, block.square)]:
        total.zero_()

    graph.replay()

    assert_within_gate(args, 2)


def test_kernels_run_on_the_current_stream(residual_rows, randn):
    """A launch on another stream reads the rows before they are doubled.

    The launch by itself: the check of ``gram_`` reads the largest fold, and so waits for the doubling.
    """
    x, y = residual_rows(5000, 130).cuda(), randn(5000, 66, dtype=torch.float32).cuda()
    args = arguments(x, y, torch.zeros(5000, dtype=torch.int64, device="cuda"), 1)
    launch_gram(*args)  # compiles
    for total in [pair.gram for pair in args[1]] + [t for block in args[0] for t in (block.sum, block.square)]:
        total.zero_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())

    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x.mul_(2)
        launch_gram(*args)
    side.synchronize()

    assert_within_gate(args, 1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_another_device_than_the_current_one(residual_rows, randn):
    x, y = residual_rows(500, 130).to("cuda:1"), randn(500, 66, dtype=torch.float32).to("cuda:1")
    args = arguments(x, y, torch.zeros(500, dtype=torch.int64, device="cuda:1"), 1)

    gram_.on("triton")(*args)

    assert_within_gate(args, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (70, 65, 33), (5000, 768, 385)], ids=str)
def test_scores_and_residual_sums(dtype, shape, residual_rows, randn):
    n, d, k = shape
    x, y = residual_rows(n, d, dtype).cuda(), residual_rows(n, k, dtype).cuda()
    coef, intercept = (randn(d, k) / d**0.5).cuda(), randn(k).cuda()
    left = ResidualSums.zero(d, k, "cuda")

    out = score.on("triton")(x, coef, intercept, y, residual=left)

    target = y.double()
    p = x.double() @ coef + intercept
    size = x.double().abs() @ coef.abs() + intercept.abs() + target.abs()
    for got, exact in zip(out, (p * target, p.square(), target.square(), (target - p).square()), strict=True):
        assert ((got - exact.sum(1)).abs() <= 3e-6 * size.square().sum(1)).all()
    r = target - p
    assert ((left.cross - x.double().mT @ r).abs() <= GATE * (x.double().abs().mT @ size)).all()
    assert ((left.squares - r.square().sum(0)).abs() <= GATE * size.square().sum(0)).all()


def test_torch_compile_takes_both_as_they_are(residual_rows, randn):
    x, y = residual_rows(500, 64).cuda(), randn(500, 32, dtype=torch.float32).cuda()
    coef, intercept = randn(64, 32).cuda(), randn(32).cuda()
    args = arguments(x, y, torch.zeros(500, dtype=torch.int64, device="cuda"), 1)

    @torch.compile(fullgraph=True)
    def both():
        gram_.on("triton")(*args)
        return score.on("triton")(x, coef, intercept, y).error

    assert torch.equal(both(), score.on("triton")(x, coef, intercept, y).error)
    assert_within_gate(args, 1)
