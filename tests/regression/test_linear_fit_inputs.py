"""Rows, masks and fits that a user may pass to a LinearFit by mistake."""

import pytest
import torch

from fastprobe import LinearFit
from fastprobe.errors import InputError, ShapeError

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = X @ torch.randn(4, 3, generator=torch.Generator().manual_seed(1)) + X[:, :3].square()
KEPT = torch.arange(60) < 40


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64, torch.uint8])
def test_a_mask_of_ones_and_zeros_has_any_dtype(dtype):
    assert LinearFit(4, 3).update(X, Y, KEPT.to(dtype)).scores() == LinearFit(4, 3).update(X, Y, KEPT).scores()


@pytest.mark.parametrize("padding", [-torch.inf, -1e9, -100, 0.5, 2, torch.nan])
def test_a_mask_of_other_numbers_is_refused(padding):
    mask = torch.where(KEPT, 0.0 if padding < 0 else 1.0, padding)
    with pytest.raises(InputError, match="update: mask must be 1 for rows that count and 0 for others"):
        LinearFit(4, 3).update(X, Y, mask)


ROWS = {
    "sparse_coo": X.to_sparse(),
    "sparse_csr": X.to_sparse_csr(),
    "nested": torch.nested.nested_tensor([X[:20], X[20:]]),
    "meta": X.to("meta"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_rows_that_are_no_plain_tensor_are_refused(kind):
    with pytest.raises(ShapeError, match=f"update: x must be a dense tensor with numbers, got one that is {kind}"):
        LinearFit(4, 3).update(ROWS[kind], Y)


@pytest.mark.parametrize("other", [3, None, LinearFit(4, 3).moments])
def test_only_fits_are_merged(other):
    with pytest.raises(InputError, match="merge_: must be another LinearFit, got a"):
        LinearFit(4, 3).merge_(other)


def test_a_fit_is_not_merged_with_itself():
    fit = LinearFit(4, 3).update(X, Y)
    with pytest.raises(InputError, match="rows would count twice"):
        fit.merge_(fit)


def test_reducing_in_a_single_process_changes_nothing():
    fit = LinearFit(4, 3).update(X, Y)
    assert fit.all_reduce_().scores() == LinearFit(4, 3).update(X, Y).scores()


def test_a_fit_that_was_made_in_inference_mode_goes_on_outside_of_it():
    with torch.inference_mode():
        fit = LinearFit(4, 3).update(X[:30], Y[:30])

    assert fit.update(X[30:], Y[30:]).score("r2") == pytest.approx(LinearFit(4, 3).update(X, Y).score("r2"))
