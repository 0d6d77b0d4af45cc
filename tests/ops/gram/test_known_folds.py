"""The largest fold of a tensor is read once, and again after a change."""

import pytest
import torch

from fastprobe.errors import ShapeError
from fastprobe.ops.gram import Block, Pair, gram_
from fastprobe.ops.gram.known_folds import largest_of, remember_largest


def test_what_is_remembered_is_not_read_again():
    fold = torch.tensor([0, 3, 1])
    remember_largest(fold, 7)  # wrong, so that a read would show

    assert largest_of(fold) == 7
    assert largest_of(fold.clone()) == 3


def test_a_change_is_seen():
    fold = torch.tensor([0, 1])
    remember_largest(fold, 1)
    fold[0] = 5

    assert largest_of(fold) == 5
    zeros = torch.zeros(2, 4, 4, dtype=torch.float64)
    with pytest.raises(ShapeError, match="fold must be below 2, the folds of the sums, got 5"):
        gram_([Block(torch.ones(2, 4), torch.zeros(4, dtype=torch.float64))], [Pair(0, 0, zeros)], fold)


def test_a_tensor_that_does_not_count_its_changes_is_always_read():
    with torch.inference_mode():
        fold = torch.tensor([0, 1])
        remember_largest(fold, 7)

        assert largest_of(fold) == 1
