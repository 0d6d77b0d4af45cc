"""``Moments`` equal sums computed from the rows, and form a commutative monoid."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from fastprobe.errors import BackendError, InputError, NumericalError, ShapeError
from fastprobe.regression.moment_plan import MomentPlan, Stage
from fastprobe.regression.moments import Moments

FOLDS = 3
WIDTHS = {"a": 4, "b": 4, "y": 4, "z": 2}
PLAN = MomentPlan.of(
    [("a", "y"), ("y", "z"), ("a", "z")], WIDTHS, folds=FOLDS, parts={"y": ("a", "b")}, cka=[("a", "y"), ("a", "z")]
)


def rows_of(n, seed=0, mean=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    rows = {b: (torch.randn(n, WIDTHS[b], generator=generator).double() + mean).to(dtype) for b in "abz"}
    return rows | {"y": rows["a"] + rows["b"]}


def folds_of(n, first=0):
    return torch.arange(first, first + n) % FOLDS


def moments_of(rows, fold):
    moments = Moments.zero(PLAN)
    moments.update_(rows, fold)
    return moments


def part(rows, here):
    return {block: tensor[here] for block, tensor in rows.items()}


def readings(moments):
    """Return everything that can be read from moments, about the origin zero."""
    moments = copy.deepcopy(moments)
    zero = Moments.zero(PLAN)
    zero.origins = {block: torch.zeros(PLAN.widths[block], dtype=torch.float64) for block in PLAN.blocks}
    zero.merge_(moments)
    blocks = [*WIDTHS]
    crosses = [zero.cross(x, y).sum(0) for x in blocks for y in blocks if (x, y) != ("b", "z")]
    sums = [read(b) for b in blocks for read in (zero.sum, zero.square)]
    return [zero.counts, *crosses, *sums, *zero.units.values(), *zero.unit_counts.values()]


def same(ours, theirs, rtol=1e-9):
    for a, b in zip(readings(ours), readings(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=rtol * max(1.0, float(b.abs().max())))


PAIRS = [(x, y) for x in WIDTHS for y in WIDTHS]


@pytest.mark.parametrize("mean", [0, 100])
@pytest.mark.parametrize(("x", "y"), PAIRS, ids="-".join)
def test_cross_is_the_product_about_the_origins(x, y, mean):
    rows = rows_of(200, mean=mean)
    fold = folds_of(200)
    moments = moments_of(rows, fold)

    cross = moments.cross(x, y)

    left, right = (rows[block] - moments.origin(block) for block in (x, y))
    exact = torch.stack([left[fold == f].mT @ right[fold == f] for f in range(FOLDS)])
    exact = exact if len(cross) == FOLDS else exact.sum(0, True)
    assert cross.shape == exact.shape
    torch.testing.assert_close(cross, exact, rtol=1e-11, atol=1e-9)


def test_the_gram_of_a_sum_of_parts_counts_every_row_once():
    plan = MomentPlan.of([("a", "y")], WIDTHS, folds=FOLDS, parts={"y": ("a", "b")}, cka=[("a", "y")])
    moments, rows = Moments.zero(plan), rows_of(200)
    moments.update_(rows, folds_of(200))

    gram = moments.cross("y", "y").sum(0)

    torch.testing.assert_close(gram, rows["y"].mT @ rows["y"], rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize(("x", "y"), PAIRS, ids="-".join)
def test_has_is_true_exactly_for_the_products_that_can_be_read(x, y):
    moments = Moments.zero(MomentPlan.of([("a", "y")], WIDTHS, parts={"y": ("a", "b")}))
    readable = {("a", "a"), ("a", "b"), ("b", "a"), ("a", "y"), ("y", "a")}

    assert moments.has(x, y) == ((x, y) in readable)
    if moments.has(x, y):
        assert moments.cross(x, y).shape == (1, WIDTHS[x], WIDTHS[y])
    else:
        with pytest.raises(KeyError):
            moments.cross(x, y)


@pytest.mark.parametrize("mean", [0, 100])
@pytest.mark.parametrize("block", WIDTHS)
def test_sums_and_squares_are_those_of_the_rows(block, mean):
    rows = rows_of(200, mean=mean)
    fold = folds_of(200)
    moments = moments_of(rows, fold)

    z = rows[block] - moments.origin(block)
    for f in range(FOLDS):
        torch.testing.assert_close(moments.sum(block)[f], z[fold == f].sum(0), rtol=1e-11, atol=1e-10)
        torch.testing.assert_close(moments.square(block)[f], z[fold == f].square().sum(0), rtol=1e-11, atol=1e-10)


def test_unit_rows_are_summed_without_zero_rows():
    rows = rows_of(50)
    rows["z"][[3, 17]] = 0

    moments = moments_of(rows, folds_of(50))

    units = rows["z"][rows["z"].any(1)]
    expected = (units / units.norm(dim=1, keepdim=True)).sum(0)
    torch.testing.assert_close(moments.units["z"], expected, rtol=1e-12, atol=1e-12)
    assert moments.unit_counts["z"] == 48


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_mean_far_from_zero_loses_no_digits(dtype):
    rows = rows_of(3000, mean=1000, dtype=dtype)

    moments = moments_of(rows, folds_of(3000))

    a, n = rows["a"].double(), 3000
    gram, mean = moments.cross("a", "a").sum(0), moments.sum("a").sum(0) / n
    exact = (a - a.mean(0)).mT @ (a - a.mean(0))
    # The error over the size of the scatter. Without an origin float32 products would be off by 1e6 * 6e-8 of it.
    size = exact.diagonal().sqrt()
    assert ((gram - n * mean.outer(mean) - exact).abs() / size.outer(size)).max() < 1e-6


def test_both_triangles_are_filled_in_after_every_update(randn):
    # Wider than a panel of 128 columns: updates leave out the lower triangle panel by panel.
    moments = Moments.zero(MomentPlan.of([("x", "y")], {"x": 300, "y": 1}))
    first, second = randn(60, 300), randn(60, 300)
    zeros = torch.zeros(60, dtype=torch.int64)

    for x in (first, second):
        moments.update_({"x": x, "y": x[:, :1]}, zeros)
        gram = moments.cross("x", "x")[0]

    x = torch.cat([first, second])
    torch.testing.assert_close(gram, x.mT @ x, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("block", WIDTHS)
def test_a_row_with_a_nan_or_infinity_is_refused_and_nothing_is_added(block, bad):
    moments = moments_of(rows_of(30), folds_of(30))
    before = copy.deepcopy(moments.tensors())
    rows = rows_of(30, seed=1)
    rows[block][7, 1] = bad

    with pytest.raises(NumericalError, match=f"^{block}: "):
        moments.update_(rows, folds_of(30))

    assert all(torch.equal(tensor, before[name]) for name, tensor in moments.tensors().items())


def test_a_row_that_does_not_count_may_hold_anything():
    rows, fold = rows_of(30), folds_of(30)
    expected = moments_of(part(rows, slice(0, 20)), fold[:20])
    for tensor in rows.values():
        tensor[20:] = float("nan")
    rows["a"][25] = float("inf")

    same(moments_of(rows, torch.where(torch.arange(30) < 20, fold, -1)), expected)


def test_rows_that_do_not_count_add_nothing():
    moments = moments_of(rows_of(5), torch.full((5,), -1))

    assert moments.tokens == 0
    assert not any(tensor.any() for tensor in moments.tensors().values())


@pytest.mark.parametrize("fold", [FOLDS, FOLDS + 4])
@pytest.mark.parametrize("plan", [PLAN, MomentPlan.of([("a", "z")], WIDTHS)], ids=["folds", "no-folds"])
def test_an_unknown_fold_is_refused_and_nothing_is_added(fold, plan):
    moments = Moments.zero(plan)

    with pytest.raises((ShapeError, InputError)):
        moments.update_(rows_of(3), torch.tensor([0, 0, fold]))

    assert not any(tensor.any() for name, tensor in moments.tensors().items() if not name.startswith("origins"))


def test_a_block_of_another_width_is_named():
    rows = rows_of(6) | {"z": torch.ones(6, 3)}

    with pytest.raises(ShapeError, match=r"z: rows must be \(6, 2\), got \(6, 3\)"):
        Moments.zero(PLAN).update_(rows, folds_of(6))


def test_a_missing_backend_is_named():
    with pytest.raises(BackendError, match="cuda"):
        Moments.zero(PLAN).update_(rows_of(6), folds_of(6), backend="cuda")


def test_the_stages_of_a_plan_add_up_to_the_whole():
    rows, fold = rows_of(40), folds_of(40)
    moments = Moments.zero(PLAN)

    for _, stage in PLAN.stages({"a": 0, "b": 1, "y": 1, "z": 2}):
        moments.update_({block: rows[block] for block in stage.blocks}, fold, stage=stage)

    same(moments, moments_of(rows, fold))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.sampled_from([0.0, 30.0]))
def test_batches_of_any_size_give_the_same_moments(sizes, mean):
    rows, moments, start = rows_of(sum(sizes), mean=mean), Moments.zero(PLAN), 0

    for size in sizes:
        moments.update_(part(rows, slice(start, start + size)), folds_of(size, start))
        start += size

    same(moments, moments_of(rows, folds_of(start)))


SHARDS = st.tuples(st.integers(0, 60), st.integers(0, 9), st.sampled_from([0.0, -40.0, 1000.0]))


def shard(spec):
    n, seed, mean = spec
    return moments_of(rows_of(n, seed, mean), folds_of(n, seed))


@given(SHARDS, SHARDS)
def test_merge_is_commutative(first, second):
    same(shard(first).merge_(shard(second)), shard(second).merge_(shard(first)))


@given(SHARDS, SHARDS, SHARDS)
def test_merge_is_associative(first, second, third):
    left = shard(first).merge_(shard(second)).merge_(shard(third))
    right = shard(first).merge_(shard(second).merge_(shard(third)))

    same(left, right)


@given(SHARDS)
def test_zero_is_neutral(spec):
    same(Moments.zero(PLAN).merge_(shard(spec)), shard(spec))
    same(shard(spec).merge_(Moments.zero(PLAN)), shard(spec))


@given(SHARDS, SHARDS)
def test_merged_moments_equal_the_moments_of_all_rows(first, second):
    (n, s, m), (k, t, q) = first, second
    rows = {b: torch.cat([rows_of(n, s, m)[b], rows_of(k, t, q)[b]]) for b in WIDTHS}

    merged = shard(first).merge_(shard(second))

    same(merged, moments_of(rows, torch.cat([folds_of(n, s), folds_of(k, t)])))


def test_a_merge_does_not_change_the_other_moments():
    first, second = shard((30, 0, 0.0)), shard((20, 1, 1000.0))
    before = copy.deepcopy(second.tensors())

    first.merge_(second)
    first.update_(rows_of(5), folds_of(5))

    assert all(torch.equal(tensor, before[name]) for name, tensor in second.tensors().items())


def test_moments_of_different_plans_do_not_merge():
    other = Moments.zero(MomentPlan.of([("a", "z")], WIDTHS, folds=FOLDS))

    with pytest.raises(InputError, match="different scans"):
        Moments.zero(PLAN).merge_(other)


@pytest.mark.parametrize("float32_first", [True, False])
def test_the_dtype_of_merged_moments_is_the_coarsest(float32_first):
    fine, coarse = shard((30, 0, 0.0)), moments_of(rows_of(30, 1, dtype=torch.float32), folds_of(30))

    merged = coarse.merge_(fine) if float32_first else fine.merge_(coarse)

    assert merged.dtype == "float32"


@pytest.mark.parametrize("float32_first", [True, False])
def test_the_dtype_of_moments_is_that_of_the_coarsest_rows(float32_first):
    dtypes = [torch.float32, torch.float64]
    moments = Moments.zero(PLAN)

    for dtype in dtypes if float32_first else reversed(dtypes):
        moments.update_(rows_of(30, dtype=dtype), folds_of(30))

    assert moments.dtype == "float32"


def _reduce(rank, url, path):
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=2)
    moments = shard(((40, 0, 0.0), (25, 1, 1000.0))[rank])
    moments.all_reduce_()
    moments.save(path / f"{rank}.safetensors")
    dist.destroy_process_group()


def test_two_processes_reduce_to_the_moments_of_all_rows(tmp_path):
    mp.spawn(_reduce, args=(f"file://{tmp_path / 'rendezvous'}", tmp_path), nprocs=2)

    expected = shard((40, 0, 0.0)).merge_(shard((25, 1, 1000.0)))
    for rank in range(2):
        same(Moments.load(tmp_path / f"{rank}.safetensors")[0], expected)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_only_columns_far_from_zero_get_an_origin_and_the_others_keep_their_digits(backend, randn):
    """An origin with a finer last digit than the rows would bias the sums of 16-bit rows (see ``_origin``)."""
    rows = randn(16_384, 8)
    rows[:, 0] += 50
    rows[:, 1] -= 57 / 512  # of numbers about 1, whose last digit is 1/128
    rows = rows.bfloat16()
    moments = Moments.zero(MomentPlan.of([("x", "x")], {"x": 8}))
    try:
        moments.update_({"x": rows}, torch.zeros(len(rows), dtype=torch.int64), backend=backend)
    except BackendError as reason:
        pytest.skip(str(reason))

    assert moments.origin("x").nonzero().flatten().tolist() == [0]
    exact = (rows.double() - moments.origin("x")).square().sum(0)
    assert (moments.cross("x", "x")[0].diagonal() / exact - 1).abs().max() <= 3e-7


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_classes_are_added_as_their_one_hot_rows_would_be(dtype, residual_rows, generator):
    x, label = residual_rows(200, 7, dtype), torch.randint(0, 4, (200,), generator=generator)
    fold = torch.randint(-1, 3, (200,), generator=generator)
    plan = MomentPlan.of([("x", "y")], {"x": 7, "y": 5}, folds=3)
    expected = Moments.zero(plan)
    expected.update_({"x": x, "y": torch.nn.functional.one_hot(label, 5).to(dtype)}, fold, backend="torch")

    moments = Moments.zero(plan)
    for part in torch.arange(200).split(70):
        moments.update_({"x": x[part]}, fold[part], stage=Stage(True, ("x",), (("x", "x"),)), backend="torch")
        moments.update_classes_("x", "y", x[part], label[part], fold[part])

    moments = moments.merge_(Moments.zero(plan))
    for name in ("sum", "square"):
        assert torch.equal(getattr(moments, name)("y"), getattr(expected, name)("y"))
    about_zero = [m.cross("x", "y") + m.origin("x")[:, None] * m.sum("y")[:, None] for m in (moments, expected)]
    torch.testing.assert_close(*about_zero, rtol=1e-6, atol=1e-6)
