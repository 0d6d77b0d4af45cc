"""A sample of sequences is independent of their order, their batches and their padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastprobe.data.sample import SequenceSample

SEQUENCES = [[(7 * i + j * j) % 50 + 1 for j in range(2 + i % 4)] for i in range(40)]


def batch_of(sequences, length=None, side="right"):
    """Make a batch of sequences padded to one length, on either side, with 99."""
    length = length or max(map(len, sequences))
    ids = torch.full((len(sequences), length), 99)
    mask = torch.zeros(len(sequences), length, dtype=torch.int64)
    for row, tokens in enumerate(sequences):
        here = slice(0, len(tokens)) if side == "right" else slice(length - len(tokens), length)
        ids[row, here] = torch.tensor(tokens)
        mask[row, here] = 1
    return {"input_ids": ids, "attention_mask": mask}


def sampled(size, sequences=SEQUENCES, batch=8, seed=0, **padding):
    sample = SequenceSample(size, seed)
    for start in range(0, len(sequences), batch):
        part = sequences[start : start + batch]
        sample.add(batch_of(part, **padding), torch.tensor([sum(tokens) % 5 for tokens in part]))
    return sample


def kept(sample, batch_size=3):
    """Return the (tokens, fold) of a sample, sorted."""
    pairs = []
    for batch, folds in sample.batches(batch_size):
        for ids, mask, fold in zip(batch["input_ids"], batch["attention_mask"].bool(), folds, strict=True):
            pairs.append((ids[mask].tolist(), int(fold)))
    return sorted(pairs)


@given(st.permutations(SEQUENCES), st.integers(1, 40), st.integers(1, 40))
def test_neither_order_nor_batches_matter(order, batch, size):
    assert kept(sampled(size, order, batch)) == kept(sampled(size))


@pytest.mark.parametrize("padding", [{"length": 9}, {"length": 17, "side": "left"}], ids=str)
def test_padding_does_not_matter(padding):
    assert kept(sampled(10, **padding)) == kept(sampled(10))


def test_it_keeps_the_number_asked_for_and_changes_no_sequence():
    pairs = kept(sampled(10))

    assert len(pairs) == len(sampled(10)) == 10
    assert all(tokens in SEQUENCES and fold == sum(tokens) % 5 for tokens, fold in pairs)


def test_none_keeps_everything():
    assert [tokens for tokens, _ in kept(sampled(None))] == sorted(SEQUENCES)


def test_a_sample_larger_than_the_stream_is_the_stream():
    assert kept(sampled(1000)) == kept(sampled(None))


def test_a_size_of_zero_keeps_nothing():
    assert len(sampled(0)) == 0
    assert list(sampled(0).batches(4)) == []


def test_a_smaller_sample_is_part_of_a_larger_one():
    small, large = kept(sampled(7)), kept(sampled(15))

    assert all(pair in large for pair in small)


def test_another_seed_gives_another_sample():
    assert kept(sampled(10, seed=1)) != kept(sampled(10, seed=2))
    assert kept(sampled(10, seed=-1)) == kept(sampled(10, seed=-1))


def test_every_place_in_the_stream_is_equally_likely():
    stream = [[i, i + 1, i + 2] for i in range(1, 2001)]

    places = [tokens[0] for tokens, _ in kept(sampled(500, stream, batch=100))]

    # The mean of 500 places of 2000 has a standard deviation of 22 about 1000: four of them.
    assert abs(sum(places) / 500 - 1000) < 90


def test_sequences_without_a_token_are_left_out():
    sample = SequenceSample(None)
    sample.add({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.zeros(2, 3)}, torch.zeros(2).long())

    assert len(sample) == 0


def test_batches_hold_one_length_sorted_by_fold():
    sample = SequenceSample(None)
    for tokens in SEQUENCES:
        sample.add(batch_of([tokens]), torch.tensor([sum(tokens) % 5]))

    batches = list(sample.batches(4))

    assert sum(len(folds) for _, folds in batches) == len(SEQUENCES)
    for batch, folds in batches:
        assert len(folds) <= 4
        assert folds.tolist() == sorted(folds.tolist())
        assert bool(batch["attention_mask"].all())  # one length, so no padding


def test_other_arguments_of_the_model_are_kept():
    sample = SequenceSample(None)
    batch = batch_of([[1, 2], [3, 4]]) | {"token_type_ids": torch.tensor([[0, 1], [1, 1]]), "text": ["a", "b"]}
    sample.add(batch, torch.tensor([1, 0]))

    ((out, folds),) = sample.batches(2)

    assert folds.tolist() == [0, 1]
    assert out["token_type_ids"].tolist() == [[1, 1], [0, 1]]
    assert "text" not in out


def test_constants_are_kept_and_never_mixed():
    sample = SequenceSample(None)
    for scale in (1.0, 2.0):
        sample.add(batch_of([[1, 2], [3, 4]]) | {"scale": scale}, torch.tensor([0, 1]))

    assert sorted(batch["scale"] for batch, _ in sample.batches(4)) == [1.0, 2.0]
