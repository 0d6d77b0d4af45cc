"""The CUDA kernels' index arithmetic, compiled for the CPU, against models of the units that it is for.

The models of the copy engine, of wgmma and of the registers are written from the PTX ISA and share nothing with the kernel.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pybind11
import pytest
import torch

from fastprobe.ops._cuda import SLAB, TILE, parts_of, slabs_of, tiles_of

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "native" / "layout.cpp"
HEADERS = [ROOT / "csrc" / "cuda" / name for name in ("layout.h", "plan.h")]
ROW, BOX, TOKENS = 128, 64, 16  # bytes of a row of a box, its columns, tokens of one wgmma


@pytest.fixture(scope="module")
def layout():
    """``csrc/cuda/layout.h`` as a Python module, built once for these sources."""
    if (compiler := shutil.which("c++")) is None:
        pytest.skip("no C++ compiler")
    key = hashlib.sha256(b"".join(path.read_bytes() for path in [SOURCE, *HEADERS])).hexdigest()[:16]
    built = ROOT / "build" / f"layout-{key}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not built.exists():
        built.parent.mkdir(exist_ok=True)
        include = [f"-I{path}" for path in (HEADERS[0].parent, sysconfig.get_path("include"), pybind11.get_include())]
        command = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", *include, SOURCE, "-o", built]
        subprocess.run(list(map(str, command)), check=True)
    spec = importlib.util.spec_from_file_location("layout", built)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- models -----------------------------------------------------------------------------------------------------------


def swizzled(address):
    """128-byte swizzle: the 16-byte piece of a row, by the row within 1,024 bytes."""
    return address ^ (address >> 7 & 7) << 4


def copy_box(memory, to, matrix, column, row):
    """The copy engine: 64 columns of 128 rows, two bytes a number, zero outside the matrix."""
    assert to % 1024 == 0
    padded = np.zeros((SLAB, BOX))
    part = matrix[row : row + SLAB, column : column + BOX]
    padded[: part.shape[0], : part.shape[1]] = part
    tokens, columns = np.mgrid[:SLAB, :BOX]
    memory[swizzled(to + tokens * ROW + columns * 2) // 2] = padded


def operand(memory, descriptor, columns):
    """What wgmma reads for a descriptor of columns that lie side by side: (columns, 16 tokens)."""
    descriptor = int(descriptor)
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    assert descriptor >> 62 == 1  # 128-byte swizzle
    assert descriptor >> 49 & 7 == 0  # atoms begin at multiples of 1,024 bytes
    m, k = np.mgrid[:columns, :TOKENS]
    return memory[swizzled(start + m % 64 * 2 + m // 64 * leading + k % 8 * ROW + k // 8 * stride) // 2]


def registers_of_wgmma(products):
    """(64, 128) products as 64 registers of each of 128 threads."""
    thread, i = np.mgrid[:128, :64]
    warp, group, place = thread // 32, thread % 32 // 4, thread % 4
    return products[16 * warp + group + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * place + i % 2]


def run_wgmma(layout, plan, blocks):
    """Every item of a plan as the kernel goes about it, one after the other."""
    thread, i = np.mgrid[:128, :64]
    first, n = 3 * 1024, 0  # where the ring begins
    for index in range(plan.items):
        memory = np.full((first + layout.STAGES * layout.STAGE_BYTES) // 2, np.nan)
        sums = np.zeros((2, 64, 128))
        *_, begin, end, diagonal = plan.work(index)
        for slab in range(begin, end):
            stage = first + layout.stage_of(n) * layout.STAGE_BYTES
            for block, column, row, to in plan.boxes(index, slab, stage):
                copy_box(memory, to, blocks[block], column, row)
            for half in range(2):
                for step in range(layout.STEPS):
                    a = operand(memory, layout.further(layout.left_operand(stage, half), step), 64)
                    b = operand(memory, layout.further(layout.right_operand(stage, diagonal), step), 128)
                    sums[half] += a @ b.T
            n += 1
        for half in range(2):
            rows = half * 64 + layout.accumulator_row(thread, i)
            plan.put(index, rows, layout.accumulator_column(thread, i), registers_of_wgmma(sums[half]))
    plan.add_parts()


def exact_products(layout, left, right):
    """(16 tokens, 64 columns) each, as the float64 kernel brings, reads and multiplies them: element by element."""
    loads = layout.EXACT_TILE * layout.EXACT_DEPTH // layout.EXACT_THREADS
    thread, load = np.mgrid[: layout.EXACT_THREADS, :loads]
    token, column = layout.exact_token(thread, load), layout.exact_column(thread)
    shared = np.full((2, layout.EXACT_DEPTH, layout.EXACT_STRIDE), np.nan)
    for side, tokens in enumerate((left, right)):
        shared[side][token, column] = tokens[token, column]
    products, lanes = np.full((64, 64), np.nan), np.arange(32)
    for row in range(0, 64, 16):
        a = np.full((16, 16), np.nan)  # columns of the left block x tokens, by the manual's places
        for i in range(8):
            a[lanes // 4 + i % 2 * 8, i // 2 * 4 + lanes % 4] = shared[0][
                layout.a_token(lanes, i), row + layout.a_column(lanes, i)
            ]
        for column in range(0, 64, 8):
            b = np.full((16, 8), np.nan)
            for i in range(4):
                b[i * 4 + lanes % 4, lanes // 4] = shared[1][layout.b_token(lanes, i), column + layout.b_column(lanes)]
            c = a @ b
            for i in range(4):
                products[row + layout.c_row(lanes, i), column + layout.c_column(lanes, i)] = c[
                    lanes // 4 + i // 2 * 8, lanes % 4 * 2 + i % 2
                ]
    return products


# -- the whole kernel -------------------------------------------------------------------------------------------------

WIDTHS = (200, 64, 130)
PAIRS = [(0, 0), (0, 1), (2, 0), (2, 2)]  # triangles and rectangles; block 1 is half a tile


def gathered(rows, index):
    """Rows by position, zero where there is none."""
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
    index, fold_slabs = (t.numpy() for t in slabs_of(fold, folds))
    outs = [randn(1 if pair == (2, 0) else folds, WIDTHS[pair[0]], WIDTHS[pair[1]]).numpy() for pair in PAIRS]
    before = [out.copy() for out in outs]
    arguments = [(i, j, WIDTHS[i], WIDTHS[j], out, len(out)) for (i, j), out in zip(PAIRS, outs, strict=True)]
    plan = layout.Plan(arguments, TILE, splits, list(fold_slabs), weight=-1.0)

    run_wgmma(layout, plan, [gathered(block, index) for block in rows])

    for (i, j), out, old in zip(PAIRS, outs, before, strict=True):
        for f in range(len(out)):
            kept = fold.numpy() == f if len(out) > 1 else fold.numpy() >= 0
            exact = old[f] - rows[i][kept].T @ rows[j][kept]
            some = np.triu if i == j else np.asarray
            np.testing.assert_allclose(some(out[f]), some(exact), rtol=1e-12, atol=1e-10)


def test_nothing_below_the_tiles_of_a_triangle_is_written(layout):
    out = np.zeros((1, 300, 300))
    plan = layout.Plan([(0, 0, 300, 300, out, 1)], TILE, 1, [0, 1], 1.0)

    run_wgmma(layout, plan, [np.ones((SLAB, 300))])

    tile = np.arange(300) // TILE
    assert (out[0][tile[:, None] <= tile] == SLAB).all()
    assert not out[0][tile[:, None] > tile].any()


def test_every_number_of_a_float64_tile_finds_its_place(layout, randn):
    left, right = randn(16, 64).numpy(), randn(16, 64).numpy()

    np.testing.assert_allclose(exact_products(layout, left, right), left.T @ right, rtol=1e-13)


@pytest.mark.parametrize("half", [0, 1])
def test_float64_fragments_meet_every_bank_once(layout, half):
    lanes = np.arange(16 * half, 16 * half + 16)  # 16 doubles are what one pass reads

    for i in range(8):
        assert len(set((layout.a_token(lanes, i) * layout.EXACT_STRIDE + layout.a_column(lanes, i)) % 16)) == 16
    for i in range(4):
        assert len(set((layout.b_token(lanes, i) * layout.EXACT_STRIDE + layout.b_column(lanes)) % 16)) == 16


# -- who does what ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [64, 128])
@pytest.mark.parametrize("splits", [1, 4])
def test_every_slab_of_every_tile_is_done_once(layout, tile, splits):
    folds, fold_slabs = 3, [0, 5, 5, 20]  # one fold is empty
    shapes = [(300, 300, True, 3), (65, 200, False, 3), (200, 1, False, 1), (64, 64, True, 1)]
    arguments = [
        (0, 0 if square else 1, height, width, np.zeros((f, height, width)), f) for height, width, square, f in shapes
    ]
    plan = layout.Plan(arguments, tile, splits, fold_slabs, 1.0)

    done = {}
    for item in range(plan.items):
        pair, row, column, begin, end, _ = plan.work(item)
        for slab in range(begin, end):
            done[pair, row, column, slab] = done.get((pair, row, column, slab), 0) + 1

    expected = {
        (pair, row, column, slab)
        for pair, (height, width, square, _) in enumerate(shapes)
        for row in range(0, height, tile)
        for column in range(row if square else 0, width, tile)
        for slab in range(20)
    }
    assert set(done) == expected
    assert set(done.values()) == {1}
    assert plan.units == sum(f * tiles_of(h, w, square, tile) for h, w, square, f in shapes)


class Barrier:
    """An mbarrier: a phase ends when the expected arrivals and bytes are in."""

    def __init__(self, arrivals):
        self.arrivals, self.pending, self.bytes, self.phase = arrivals, arrivals, 0, 0

    def arrive(self, expected=0):
        self.pending, self.bytes = self.pending - 1, self.bytes + expected
        self._end()

    def deliver(self, size):
        self.bytes -= size
        self._end()

    def passed(self, parity):
        """``mbarrier.try_wait.parity``: whether the phase of this parity has ended, taking phase -1 for ended."""
        return self.phase % 2 != parity

    def _end(self):
        if not self.pending and not self.bytes:
            self.pending, self.phase = self.arrivals, self.phase + 1


@pytest.mark.parametrize("seed", range(20))
def test_the_ring_never_stops_and_never_overwrites_what_is_read(layout, seed):
    """Producer, copies and consumer warps take turns at random; some are far ahead for a while."""
    random, slabs, warps = np.random.default_rng(seed), 40, 8
    full, empty = ([Barrier(count) for _ in range(layout.STAGES)] for count in (1, warps))
    holds = [None] * layout.STAGES  # which slab lies in a stage
    at, copies = [0] * (warps + 1), []  # slabs done by each consumer, then by the producer
    eager = random.permutation(warps + 2) + 1.0

    def steps():
        """Who can go on."""
        for warp in range(warps):
            if at[warp] < slabs and full[layout.stage_of(at[warp])].passed(layout.full_parity(at[warp])):
                yield warp
        if at[warps] < slabs and empty[layout.stage_of(at[warps])].passed(layout.empty_parity(at[warps])):
            yield warps
        if copies:
            yield warps + 1

    while min(at) < slabs:
        able = list(steps())
        assert able, f"everybody waits, at slabs {at}"
        who = random.choice(able, p=eager[able] / eager[able].sum())
        if who == warps + 1:
            n, stage = copies.pop(random.integers(len(copies)))
            holds[stage] = n
            full[stage].deliver(layout.STAGE_BYTES)
            continue
        n = at[who]
        stage = layout.stage_of(n)
        if who == warps:
            assert all(done > n - layout.STAGES for done in at[:warps]), "a stage is filled that is still read"
            full[stage].arrive(expected=layout.STAGE_BYTES)
            copies.append((n, stage))
        else:
            assert holds[stage] == n
            empty[stage].arrive()
        at[who] += 1


# -- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_chains_add_up_to_more_digits_than_float32_has(layout, mean, randn):
    chains = (randn(2**16) + 8 * mean).float().numpy()  # 8 million tokens

    total = layout.sum_of_chains(chains)

    exact, size = chains.astype(np.float64).sum(), np.abs(chains.astype(np.float64)).sum()
    assert abs(total - exact) <= 2**-26 * size


@pytest.mark.parametrize(("n", "folds"), [(1, 1), (128, 1), (129, 3), (1000, 3), (1000, 300)])
def test_slabs_hold_the_rows_of_one_fold_in_their_order(n, folds, generator):
    fold = torch.randint(-1, folds, (n,), generator=generator)

    index, fold_slabs = slabs_of(fold, folds)

    assert len(index) == SLAB * (-(-n // SLAB) + folds)
    assert fold_slabs[0] == 0
    for f in range(folds):
        here = index[fold_slabs[f] * SLAB : fold_slabs[f + 1] * SLAB]
        assert torch.equal(here[here >= 0].long(), (fold == f).nonzero().flatten())
        assert (here[: (fold == f).sum()] >= 0).all()
        assert (here < 0).sum() < SLAB
    assert (index[fold_slabs[-1] * SLAB :] == -1).all()


def test_a_single_fold_takes_rows_of_any_and_leaves_out_none():
    index, fold_slabs = slabs_of(torch.tensor([4, -1, 0, 7, -3]), 1)

    assert index[:4].tolist() == [0, 2, 3, -1]
    assert fold_slabs.tolist() == [0, 1]


@pytest.mark.parametrize("tokens", [4096, 32_768, 1_000_000])
@pytest.mark.parametrize("units", [1, 15, 57, 75, 285, 3000])
def test_parts_keep_processors_busy_and_are_not_too_short(tokens, units):
    slabs = tokens // SLAB

    parts = parts_of(units, slabs, processors=132)

    assert parts == 1 or slabs / parts >= 16
    if slabs > 132 * 16:
        waves = -(-units * parts // 132)
        assert units * parts / (waves * 132) >= 0.9
