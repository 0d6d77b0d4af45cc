"""``LinearFit``: rows in any batches, masks, folds by sequence, merges and error messages."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from fastprobe.errors import BackendError, InputError, NumericalError, ShapeError
from fastprobe.regression.linear_fit import LinearFit

SAME = ("r2", "r2_cv", "r2_cv_se", "r2_uniform", "cka", "anisotropy", "rank")


def same(ours, theirs):
    for column in SAME:
        assert ours.score(column) == pytest.approx(theirs.score(column), rel=1e-9, abs=1e-9), column


@pytest.fixture
def pair(randn):
    x = randn(120, 4)
    return x, x @ randn(4, 3) + randn(120, 3)


def test_update_returns_itself(pair):
    fit = LinearFit(4, 3)

    assert fit.update(*pair) is fit
    assert fit.partial_fit(*pair) is fit


def test_partial_fit_is_update(pair):
    same(LinearFit(4, 3).partial_fit(*pair), LinearFit(4, 3).update(*pair))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5))
def test_a_stream_scores_the_same_in_any_batches(sizes):
    generator = torch.Generator().manual_seed(sum(sizes))
    x, y = (torch.randn(sum(sizes) + 20, w, generator=generator, dtype=torch.float64) for w in (3, 2))
    fit = LinearFit(3, 2)

    for part_x, part_y in zip(x.split([*sizes, 20]), y.split([*sizes, 20]), strict=True):
        fit.update(part_x, part_y)

    same(fit, LinearFit(3, 2).update(x, y))


def test_masked_rows_do_not_count(pair, generator):
    x, y = (rows.reshape(12, 10, -1) for rows in pair)
    mask = torch.rand(12, 10, generator=generator) < 0.7
    x[~mask], y[~mask] = float("nan"), float("inf")

    fit = LinearFit(4, 3).update(x, y, mask)

    kept_fold = (torch.arange(12) % 5)[:, None].expand(12, 10)[mask]
    expected = LinearFit(4, 3)
    expected.moments.update_({"x": x[mask], "y": y[mask]}, kept_fold)
    same(fit, expected)
    assert fit.moments.tokens == int(mask.sum())
    same(LinearFit(4, 3).update(x, y, mask.long()), fit)


def test_the_first_of_three_dimensions_counts_sequences(pair):
    x, y = (rows.reshape(12, 10, -1) for rows in pair)

    fit = LinearFit(4, 3).update(x[:7], y[:7]).update(x[7:], y[7:])

    assert fit.sequences == 12
    assert fit.moments.counts.tolist() == [30, 30, 20, 20, 20]  # 12 sequences of 10 tokens over 5 folds
    torch.testing.assert_close(fit.moments.sum("x")[1], (x - fit.moments.origin("x"))[1::5].sum((0, 1)))


def test_each_row_of_a_matrix_is_its_own_sequence(pair):
    fit = LinearFit(4, 3, folds=7).update(*pair)

    assert fit.sequences == 120
    assert fit.moments.counts.tolist() == [18.0] + [17.0] * 6


def test_a_merged_fit_equals_the_fit_of_all_rows(pair):
    x, y = pair
    first, second = LinearFit(4, 3).update(x[:50], y[:50]), LinearFit(4, 3).update(x[50:], y[50:])

    merged = first.merge_(second)

    assert merged is first
    assert merged.sequences == 120
    same(merged, LinearFit(4, 3).update(x, y))  # 50 is a multiple of the folds, so folds agree


def test_fits_of_different_widths_do_not_merge():
    with pytest.raises(InputError, match="merge"):
        LinearFit(4, 3).merge_(LinearFit(4, 2))


@pytest.mark.parametrize("mean", [0, 1000, 1e6])
def test_reducing_over_one_process_changes_no_score(mean, pair, tmp_path):
    x, y = pair[0] + mean, pair[1] - mean
    fit = LinearFit(4, 3).update(x, y)
    reduced = copy.deepcopy(fit)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        reduced.all_reduce_()
    finally:
        dist.destroy_process_group()

    # Reducing moves the sums to other origins, which may lose as many digits as merging.
    for column in SAME:
        assert reduced.score(column) == pytest.approx(fit.score(column), rel=1e-6, abs=1e-6), column


@pytest.mark.parametrize("value", [0.1, 1000.3])
def test_a_constant_target_has_no_score_after_reducing(value, randn, tmp_path):
    fit = LinearFit(4, 3).update(randn(100, 4), torch.full((100, 3), value, dtype=torch.float64))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        fit.all_reduce_()
    finally:
        dist.destroy_process_group()

    assert [fit.scores()[column] for column in ("r2", "r2_cv", "r2_uniform", "cka")] == [None] * 4


SHAPES = {
    "x-width": ((5, 3), (5, 3), None),
    "y-width": ((5, 4), (5, 2), None),
    "rows": ((5, 4), (6, 3), None),
    "one-dimension": ((4,), (3,), None),
    "four-dimensions": ((2, 2, 2, 4), (2, 2, 2, 3), None),
    "dimensions": ((5, 4), (5, 1, 3), None),
    "mask": ((5, 4), (5, 3), (4,)),
    "mask-dimensions": ((2, 5, 4), (2, 5, 3), (2,)),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_rows_of_wrong_shapes_are_refused_and_nothing_is_added(shapes):
    x, y, mask = (None if shape is None else torch.ones(shape) for shape in shapes)
    fit = LinearFit(4, 3)

    with pytest.raises(ShapeError, match=r"\(.*\)"):
        fit.update(x, y, mask)

    assert (fit.sequences, fit.moments.tokens) == (0, 0)


@pytest.mark.parametrize(("sizes", "name"), [((-8, 5, 5), "x_dim"), ((8, 0, 5), "y_dim"), ((8, 5, -1), "folds")])
def test_invalid_sizes_are_named(sizes, name):
    with pytest.raises(InputError, match=f"{name}: must be . or more, got"):
        LinearFit(sizes[0], sizes[1], folds=sizes[2])


def test_rows_of_integers_are_refused():
    with pytest.raises(ShapeError, match=r"x.*torch\.int64"):
        LinearFit(2, 2).update(torch.ones(5, 2, dtype=torch.int64), torch.ones(5, 2))


def test_rows_with_a_nan_are_refused_and_nothing_is_added(pair):
    x, y = pair
    fit = LinearFit(4, 3).update(x, y)
    before = fit.scores()
    y = y.clone()
    y[3, 1] = float("nan")

    with pytest.raises(NumericalError, match=r"^y: "):
        fit.update(x, y)

    assert fit.sequences == 120
    assert fit.scores() == before


def test_rows_with_gradients_are_added_without_them(pair):
    x, y = pair
    x = x.clone().requires_grad_()

    fit = LinearFit(4, 3).update(x, y)

    same(fit, LinearFit(4, 3).update(*pair))
    assert not any(tensor.requires_grad for tensor in fit.moments.tensors().values())


def test_score_is_a_column_of_scores(pair):
    fit = LinearFit(4, 3).update(*pair)

    assert fit.score() == fit.scores()["r2_cv"]
    assert fit.score("condition") == fit.scores()["condition"]


def test_an_unknown_column_is_refused_with_a_list_of_columns(pair):
    with pytest.raises(InputError, match=r"one of nonlinearity, r2, r2_adjusted, r2_cv.*error_bound.*, got 'nope'"):
        LinearFit(4, 3).update(*pair).score("nope")


def test_without_cka_the_gram_of_y_is_not_kept(pair):
    x, y = pair
    lean, full = (LinearFit(x.shape[1], y.shape[1], cka=cka).update(x, y) for cka in (False, True))

    assert ("y", "y") not in lean.moments.grams
    with pytest.raises(InputError, match="got 'cka'"):
        lean.score("cka")
    assert {**full.scores(), "cka": None} == lean.scores()


def test_the_list_of_columns_leaves_out_those_that_are_none(pair):
    with pytest.raises(InputError, match="got 'r2_residual'") as error:
        LinearFit(4, 3).update(*pair).score("r2_residual")

    assert "r2_identity" not in str(error.value)


def test_solve_returns_the_scored_map(pair):
    x, y = pair
    fit = LinearFit(4, 3).update(x, y)

    p = fit.solve()(x)

    r2 = 1 - (y - p).square().sum() / (y - y.mean(0)).square().sum()
    assert fit.score("r2") == pytest.approx(float(r2), abs=1e-12)
    torch.testing.assert_close(fit.solve().to_linear(torch.float64)(x), p)


def test_a_backend_applies_to_every_operation_that_has_it():
    """unit_sum has no Triton kernel and score has no CUDA kernel; a fit must use another backend for them."""
    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(64, width, generator=generator) for width in (8, 4))
    expected = LinearFit(8, 4).update(x, y)

    fit = LinearFit(8, 4, backend="triton").update(x, y).refine([(x, y)], bound=0)

    assert fit.moments.backend == "triton"
    assert fit.score("r2") == pytest.approx(expected.score("r2"), abs=1e-6)
    assert fit.score("anisotropy") == pytest.approx(expected.score("anisotropy"), abs=1e-6)


def test_a_missing_backend_is_named(pair):
    with pytest.raises(BackendError, match="cuda"):
        LinearFit(4, 3, backend="cuda").update(*pair)


@pytest.mark.parametrize("n", [10, 1000])
def test_the_size_of_a_fit_does_not_depend_on_the_number_of_rows(n, randn):
    fit = LinearFit(4, 3).update(randn(n, 4), randn(n, 3))

    # 5 folds of a 4x4 and a 4x3 matrix, one pooled 3x3 matrix, and vectors: under 2 kB.
    assert sum(tensor.nbytes for tensor in fit.moments.tensors().values()) < 2048


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows,
        lambda rows: rows[::-1],
        lambda rows: np.asfortranarray(rows),
        lambda rows: rows.astype(">f8"),
        lambda rows: rows.astype(np.float32),
    ],
    ids=["plain", "reversed", "column-major", "big-endian", "float32"],
)
def test_arrays_of_numpy_are_rows(pair, change, recwarn):
    x, y = (change(rows.numpy()) for rows in pair)
    x.flags.writeable = False
    mask = np.arange(120) % 3 > 0
    tensors = [torch.from_numpy(np.array(rows.astype(rows.dtype.newbyteorder("=")), order="C")) for rows in (x, y)]

    fit = LinearFit(4, 3).update(x, y, mask)

    same(fit, LinearFit(4, 3).update(*tensors, torch.from_numpy(mask)))
    assert fit.refine([(x, y, mask)], bound=0).score("r2") == pytest.approx(fit.score("r2"), abs=1e-6)
    assert not recwarn.list


@pytest.mark.parametrize(
    "x",
    [
        [[1.0, 2.0]],
        None,
        "x",
        np.array([["a", "b"]]),
        np.array([[1, None]], dtype=object),
        np.ma.masked_array([[1.0, 2.0]], [[True, False]]),
        np.array([[1j, 2]]),
        torch.tensor([[1j, 2]]),
        torch.tensor([[1, 2]]),
        torch.tensor([1.0, 2.0]),
        torch.tensor(1.0),
    ],
    ids=repr,
)
def test_other_rows_are_refused_in_one_line(x):
    for arguments in ((x, torch.ones(1, 1)), (torch.ones(1, 2), x), (torch.ones(1, 2), torch.ones(1, 1), x)):
        if arguments[-1] is None:
            continue
        with pytest.raises(ShapeError) as error:
            LinearFit(2, 1).update(*arguments)

        assert len(str(error.value).splitlines()) == 1


def test_a_graph_of_gradients_is_not_kept(pair):
    x = pair[0].clone().requires_grad_()

    fit = LinearFit(4, 3).update(x, pair[1])

    assert not fit.solve().coef.requires_grad
