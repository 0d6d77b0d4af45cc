"""Tokens without padding: their order, and the way to padded tensors and back."""

import pytest
import torch

from fastprobe.models.unpadded.tokens import UnpaddedTokens

MASK = [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 1]]


@pytest.fixture
def tokens():
    return UnpaddedTokens.of(torch.tensor(MASK, dtype=torch.bool))


def test_sequences_are_sorted_by_length_and_keep_their_order(tokens):
    assert tokens.runs == ((2, 2), (1, 4))
    assert tokens.index.tolist() == [2, 3, 13, 15, 4, 5, 6, 7]
    assert tokens.sequence.tolist() == [0, 0, 3, 3, 1, 1, 1, 1]


def test_unpad_and_pad_restore_tokens_and_set_padding_to_zero(tokens, randn):
    padded = randn(4, 4, 3)

    restored = tokens.pad(tokens.unpad(padded))

    assert torch.equal(restored, padded * torch.tensor(MASK)[..., None])


def test_a_batch_of_padding_has_no_tokens():
    tokens = UnpaddedTokens.of(torch.zeros(3, 5, dtype=torch.bool))

    assert len(tokens) == 0
    assert tokens.runs == ()
