"""Tokens without padding: there and back, sequences of one length side by side."""

import pytest
import torch

from fastprobe.models.unpadded.tokens import FlatTokens

LEFT = [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]]


@pytest.fixture
def flat():
    return FlatTokens.of(torch.tensor(LEFT, dtype=torch.bool))


def test_sequences_of_one_length_lie_side_by_side_in_their_order(flat):
    assert flat.runs == ((2, 2), (1, 4))
    assert flat.index.tolist() == [2, 3, 13, 15, 4, 5, 6, 7]
    assert flat.sequence.tolist() == [0, 0, 3, 3, 1, 1, 1, 1]


def test_there_and_back_leaves_zeros_where_no_token_is(flat, randn):
    padded = randn(4, 4, 3)

    back = flat.restore(flat.flatten(padded))

    assert torch.equal(back, padded * torch.tensor(LEFT)[..., None])


def test_a_batch_without_a_token_is_empty():
    flat = FlatTokens.of(torch.zeros(3, 5, dtype=torch.bool))

    assert len(flat) == 0
    assert flat.runs == ()
