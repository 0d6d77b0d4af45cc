"""The index arithmetic of the CUDA kernels, compiled for the CPU, against models of the hardware units."""

import numpy as np
import pytest
import torch

from fastprobe.kernels import gram
from fastprobe.ops.gram.cuda_launches import SLAB, TILE, parts_of, slabs_of, tiles_of
from tests.native.cuda_on_host import exact_products, host_layout, poisoned, run_wgmma
from tests.native.cuda_resources import DYNAMIC_SHARED


@pytest.fixture
def layout():
    return host_layout() or pytest.skip("no C++ compiler")


def plan_of(layout, pairs, tile, splits, fold_slabs):
    """Return a plan of pairs (left, right, gram), and the memory that it points to."""
    fold_slabs = np.asarray(fold_slabs, np.int32)
    folds = len(fold_slabs) - 1
    items = sum(folds * splits * tiles_of(*gram.shape[1:], left == right, tile) for left, right, gram in pairs)
    workspace = poisoned(items, tile)
    plan = layout.Plan(
        [
            (left, right, *gram.shape[1:], gram.ctypes.data, gram.strides[0] // 8, gram.strides[1] // 8, len(gram))
            for left, right, gram in pairs
        ],
        tile,
        splits,
        len(fold_slabs) - 1,
        fold_slabs.ctypes.data,
        workspace.ctypes.data,
    )
    return plan, (fold_slabs, workspace)


# -- the whole kernel -------------------------------------------------------------------------------------------------

WIDTHS = (200, 64, 130)
PAIRS = [(0, 0), (0, 1), (2, 0), (2, 2)]  # triangles and rectangles; block 1 is half a tile


def gathered(rows, index):
    """Return rows by position, with zeros for empty positions."""
    return np.where(index[:, None] < 0, 0.0, rows[index])


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("folds", [1, 3])
def test_a_replay_of_the_kernel_gives_the_products(layout, splits, folds, randn):
    n = 700
    fold = torch.arange(n) * folds // n  # of unequal lengths, the first rows left out
    fold[:90] = -1
    rows = [randn(n, width).numpy() for width in WIDTHS]
    for block in rows:
        block[:90] = np.nan
    slabs = slabs_of(fold, folds)
    index, fold_slabs = slabs.row.numpy(), slabs.first.numpy()
    outs = [randn(1 if pair == (2, 0) else folds, WIDTHS[pair[0]], WIDTHS[pair[1]]).numpy() for pair in PAIRS]
    before = [out.copy() for out in outs]
    pairs = [(*pair, out) for pair, out in zip(PAIRS, outs, strict=True)]
    plan, _kept = plan_of(layout, pairs, TILE, splits, fold_slabs)

    run_wgmma(layout, plan, [gathered(block, index) for block in rows])

    for (i, j), out, old in zip(PAIRS, outs, before, strict=True):
        for f in range(len(out)):
            kept = fold.numpy() == f if len(out) > 1 else fold.numpy() >= 0
            exact = old[f] + rows[i][kept].T @ rows[j][kept]
            some = np.triu if i == j else np.asarray
            np.testing.assert_allclose(some(out[f]), some(exact), rtol=1e-12, atol=1e-10)


def test_nothing_below_the_tiles_of_a_triangle_is_written(layout):
    out = np.zeros((1, 300, 300))
    plan, _kept = plan_of(layout, [(0, 0, out)], TILE, 1, [0, 1])

    run_wgmma(layout, plan, [np.ones((SLAB, 300))])

    tile = np.arange(300) // TILE
    assert (out[0][tile[:, None] <= tile] == SLAB).all()
    assert not out[0][tile[:, None] > tile].any()


def test_a_float64_tile_is_the_product_of_its_operands(layout, randn):
    left, right = randn(16, 64).numpy(), randn(16, 64).numpy()

    np.testing.assert_allclose(exact_products(layout, left, right), left.T @ right, rtol=1e-13)


def test_the_ring_fits_into_shared_memory(layout):
    barriers = 2 * 8 * layout.STAGES

    assert layout.GRAM_SHARED >= layout.STAGES * layout.STAGE_BYTES + 1023  # the ring begins at a multiple of 1,024
    assert layout.GRAM_SHARED + barriers <= 227 * 1024
    assert DYNAMIC_SHARED["gram_kernel"] == layout.GRAM_SHARED


def test_chains_and_float32_sums_are_as_long_as_those_whose_errors_are_known(layout):
    """They are those of ``kernels/gram.py``, and tests/ops/gram/test_accumulation.py emulates them."""
    assert (gram.GramConfig().chain, gram.FLUSH) == (SLAB, SLAB * layout.FLUSH)


@pytest.mark.parametrize("half", [0, 1])
def test_float64_fragments_read_every_bank_once(layout, half):
    lanes = np.arange(16 * half, 16 * half + 16)  # 16 doubles are what one pass reads

    for i in range(8):
        assert len(set((layout.a_token(lanes, i) * layout.EXACT_STRIDE + layout.a_column(lanes, i)) % 16)) == 16
    for i in range(4):
        assert len(set((layout.b_token(lanes, i) * layout.EXACT_STRIDE + layout.b_column(lanes)) % 16)) == 16


# -- division of work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [64, 128])
@pytest.mark.parametrize("splits", [1, 4])
def test_every_slab_of_every_tile_is_done_once(layout, tile, splits):
    shapes = [(3, 300, 300), (3, 65, 200), (1, 200, 1), (1, 64, 64)]
    pairs = [(0, 0 if shape[1] == shape[2] else 1, np.zeros(shape)) for shape in shapes]
    plan, _kept = plan_of(layout, pairs, tile, splits, fold_slabs=[0, 5, 5, 20])  # three folds, one of them empty

    done = {}
    for item in range(plan.items):
        pair, row, column, begin, end, _ = plan.work(item)
        for slab in range(begin, end):
            done[pair, row, column, slab] = done.get((pair, row, column, slab), 0) + 1

    expected = {
        (pair, row, column, slab)
        for pair, (_, height, width) in enumerate(shapes)
        for row in range(0, height, tile)
        for column in range(row if height == width else 0, width, tile)
        for slab in range(20)
    }
    assert set(done) == expected
    assert set(done.values()) == {1}
    assert plan.units == sum(f * tiles_of(h, w, h == w, tile) for f, h, w in shapes)


# -- slabs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "folds"), [(1, 1), (128, 1), (129, 3), (1000, 3), (1000, 300)])
def test_slabs_hold_the_rows_of_one_fold_in_their_order(n, folds, generator):
    fold = torch.randint(-1, folds, (n,), generator=generator)

    slabs = slabs_of(fold, folds)
    index, fold_slabs = slabs.row, slabs.first

    assert len(index) == SLAB * (-(-n // SLAB) + folds)
    assert fold_slabs[0] == 0
    for f in range(folds):
        here = index[fold_slabs[f] * SLAB : fold_slabs[f + 1] * SLAB]
        assert torch.equal(here[here >= 0].long(), (fold == f).nonzero().flatten())
        assert (here[: (fold == f).sum()] >= 0).all()
        assert (here < 0).sum() < SLAB
    assert (index[fold_slabs[-1] * SLAB :] == -1).all()


def test_a_single_fold_takes_rows_of_any_and_leaves_out_none():
    slabs = slabs_of(torch.tensor([4, -1, 0, 7, -3]), 1)

    assert slabs.row[:4].tolist() == [0, 2, 3, -1]
    assert slabs.first.tolist() == [0, 1]


@pytest.mark.parametrize("tokens", [4096, 32_768, 1_000_000])
@pytest.mark.parametrize("units", [1, 15, 57, 75, 285, 3000])
def test_parts_keep_processors_busy_and_are_not_too_short(tokens, units):
    slabs = tokens // SLAB

    parts = parts_of(units, slabs, processors=132)

    assert parts == 1 or slabs / parts >= 16
    if slabs > 132 * 16:
        waves = -(-units * parts // 132)
        assert units * parts / (waves * 132) >= 0.9
