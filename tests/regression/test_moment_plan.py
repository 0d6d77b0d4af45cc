"""A plan has every product that its fits need, once, and no product that follows from others."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments

WIDTHS = {"a": 3, "b": 3, "c": 2, "s": 3, "d": 3, "t": 3}
PARTS = {"s": ("a", "b"), "t": ("s", "d")}  # t is the sum of a sum
FITS = st.lists(st.tuples(st.sampled_from(list(WIDTHS)), st.sampled_from(list(WIDTHS))), min_size=1, max_size=6)


def plan_of(fits, folds=2, cka=()):
    return MomentPlan.of(fits, WIDTHS, folds=folds, parts=PARTS, cka=cka)


def test_a_fit_needs_the_gram_of_x_and_the_product_of_x_and_y():
    plan = MomentPlan.of([("x", "y")], {"x": 4, "y": 5}, folds=3)

    assert plan.pairs == (("x", "x"), ("x", "y"))
    assert plan.pooled == ()
    assert plan.units == ("y",)
    assert plan.widths == {"x": 4, "y": 5}
    assert plan.folds == 3


def test_fits_share_the_gram_of_their_source():
    plan = MomentPlan.of([("x", "y"), ("x", "z"), ("x", "y")], {"x": 4, "y": 5, "z": 2})

    assert plan.pairs == (("x", "x"), ("x", "y"), ("x", "z"))


def test_a_pair_and_its_mirror_image_are_kept_once():
    plan = MomentPlan.of([("x", "y"), ("y", "x")], {"x": 4, "y": 5})

    assert plan.pairs == (("x", "x"), ("x", "y"), ("y", "y"))


def test_cka_needs_the_pooled_gram_of_y():
    plan = MomentPlan.of([("x", "y")], {"x": 4, "y": 5}, folds=3, cka=[("x", "y")])

    assert plan.pooled == (("y", "y"),)


def test_cka_needs_nothing_more_if_the_gram_of_y_is_kept_already():
    plan = MomentPlan.of([("x", "y"), ("y", "x")], {"x": 4, "y": 5}, cka=[("x", "y")])

    assert plan.pooled == ()


def test_a_sum_of_blocks_is_never_multiplied():
    plan = MomentPlan.of([("h", "s")], {"h": 4, "o": 4, "s": 4}, parts={"s": ("h", "o")})

    assert plan.pairs == (("h", "h"), ("h", "o"))
    assert plan.blocks == ["h", "o"]
    assert plan.units == ("s",)  # unit-norm rows do not follow from the parts


def test_blocks_without_a_fit_are_left_out():
    plan = MomentPlan.of([("x", "y")], {"w": 9, "x": 4, "y": 5})

    assert list(plan.widths) == ["x", "y"]


@pytest.mark.parametrize("folds", [0, 1])
def test_without_folds_there_is_one_set_of_sums(folds):
    assert MomentPlan.of([("x", "y")], {"x": 4, "y": 5}, folds=folds).folds == 1


@given(FITS, FITS)
def test_no_pair_is_kept_twice_or_mirrored_or_of_a_sum(fits, cka):
    plan = plan_of(fits, cka=cka)

    kept = Counter(frozenset(pair) for pair in (*plan.pairs, *plan.pooled))
    assert set(kept.values()) == {1}
    assert not {block for pair in kept for block in pair} & set(PARTS)
    assert set(plan.widths) >= {block for pair in kept for block in pair}


@given(FITS, FITS)
def test_everything_that_a_fit_needs_can_be_read(fits, cka):
    moments = Moments.zero(plan_of(fits, cka=cka))

    for x, y in fits:
        assert moments.cross(x, x).shape == (2, WIDTHS[x], WIDTHS[x])
        assert moments.cross(x, y).shape == (2, WIDTHS[x], WIDTHS[y])
        assert moments.sum(x).shape == (2, WIDTHS[x])
        assert moments.square(y).shape == (2, WIDTHS[y])
        assert moments.units[y].shape == (WIDTHS[y],)
    for _, y in cka:
        assert moments.cross(y, y).shape[1:] == (WIDTHS[y], WIDTHS[y])


@given(FITS, FITS, st.permutations(range(len(WIDTHS))))
def test_stages_do_everything_once_and_only_when_its_blocks_are_available(fits, cka, times):
    plan = plan_of(fits, cka=cka)
    last = dict(zip(WIDTHS, (t // 2 for t in times), strict=True))

    stages = plan.stages(last)

    assert [time for time, _ in stages] == sorted({last[b] for b in plan.widths})
    assert [stage.first for _, stage in stages] == [True] + [False] * (len(stages) - 1)
    assert sorted(p for _, s in stages for p in s.pairs) == sorted((*plan.pairs, *plan.pooled))
    assert sorted(b for _, s in stages for b in s.fresh) == sorted(plan.widths)
    for time, stage in stages:
        assert all(last[block] <= time for block in stage.blocks)
        assert set(stage.blocks) == {*stage.fresh, *(b for pair in stage.pairs for b in pair)}


def test_the_whole_plan_is_one_stage():
    plan = plan_of([("a", "t"), ("s", "c")], cka=[("a", "t")])

    stage = plan.whole()

    assert stage.first
    assert set(stage.pairs) == {*plan.pairs, *plan.pooled}
    assert set(stage.fresh) == set(plan.widths)


@given(FITS, FITS, st.integers(1, 5))
def test_nbytes_is_the_size_of_the_sums(fits, cka, folds):
    plan = plan_of(fits, folds, cka)
    moments = Moments.zero(plan)
    rows = {block: torch.ones(4, width) for block, width in plan.widths.items()}
    moments.update_(rows, torch.arange(4) % folds)

    assert plan.nbytes == sum(tensor.nbytes for tensor in moments.tensors().values())
