"""Number of tokens that a conclusion needs."""

import pytest

from fastprobe.regression.evidence import cannot_be_said, is_undecided, tokens_for_difference, tokens_for_map


@pytest.mark.parametrize(
    ("tokens", "nonlinearity", "needed"),
    [
        (1_919, 0.5, 1_920),
        (1_920, 0.5, 0),
        (1_000, 117.364, 2_000),
        (8_000, 1.09, 0),
        (8_000, 1.11, 16_000),
        (8_000, None, 0),
    ],
)
def test_a_map_needs_five_tokens_a_column_and_a_score_in_its_range(tokens, nonlinearity, needed):
    assert tokens_for_map(tokens, 384, nonlinearity) == needed


@pytest.mark.parametrize(
    ("difference", "error", "needed"),
    [
        (1.0, 1.0, 4_000),
        (-1.0, 1.0, 4_000),
        (0.5, 0.5, 4_000),
        (0.0, 1.0, 400_000),
        (1.9, 1.0, 1_200),
        (1.0, None, 2_000),
    ],
)
def test_a_difference_needs_as_many_tokens_as_bring_its_noise_below_it(difference, error, needed):
    assert tokens_for_difference(1_000, difference, error) == needed


def test_more_tokens_than_there_are_are_proposed():
    for tokens in (1, 7, 99, 101, 12_345):
        for difference in (0.0, 1e-9, 0.3, 1.99, 2.0):
            assert tokens_for_difference(tokens, difference, 1.0) > tokens


def test_a_row_says_how_many_tokens_it_needs_and_old_rows_are_taken_as_they_are():
    assert cannot_be_said(1_000, 1_920) == "cannot be said with 1,000 tokens; at least 1,920 would do"
    assert is_undecided({"tokens_needed": 2, "note": ""})
    assert not is_undecided({"tokens_needed": 0, "note": cannot_be_said(1, 2)})
    assert not is_undecided({"note": "a row of version 0.1.0"})
    assert not is_undecided({})
