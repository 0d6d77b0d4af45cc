"""Grouping, merging and selecting batches; scans of merged batches."""

import sys

import pytest
import torch

import fastprobe as fp
from fastprobe.data.batches import grouped, merge, select
from fastprobe.errors import NumericalError
from fastprobe.models.unpadded.encoder import Encoder
from fastprobe.scan.checkpoint import Checkpoint
from fastprobe.testing.tiny_models import tiny_batches, tiny_model


def batch(lengths, width=None, **more):
    """Make a batch of sequences of these lengths, each with ids 1, 2, ..."""
    width = width or max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.arange(1, width + 1) * mask, "attention_mask": mask.long(), **more}


@pytest.fixture
def limit(monkeypatch):
    """Set the tokens that complete a group of batches."""

    def set_to(tokens):
        monkeypatch.setattr(sys.modules["fastprobe.scan.reader"], "batch_tokens", lambda device: tokens)

    return set_to


def test_a_group_ends_with_the_batch_that_completes_it():
    batches = [batch([3, 2]), batch([4]), batch([9]), batch([1]), batch([2, 2])]

    number = {id(one): place for place, one in enumerate(batches)}
    groups = [[number[id(one)] for one in group] for group in grouped(iter(batches), 9)]

    assert groups == [[0, 1], [2], [3, 4]]
    assert [len(group) for group in grouped(batches, 0)] == [1] * 5


def test_batches_with_different_tensors_are_not_grouped():
    plain, types = batch([2]), batch([2], token_type_ids=torch.zeros(1, 2, dtype=torch.long))
    shared = batch([2], position_ids=torch.arange(2))  # one row for all sequences

    sizes = [len(group) for group in grouped([plain, plain, types, types, shared, shared, plain], 100)]

    assert sizes == [2, 2, 1, 1, 1]


def test_merged_batches_are_padded_at_the_end():
    together = merge([batch([3, 2]), batch([1, 4], width=5)])

    assert together["input_ids"].tolist() == [[1, 2, 3, 0, 0], [1, 2, 0, 0, 0], [1, 0, 0, 0, 0], [1, 2, 3, 4, 0]]
    assert together["attention_mask"].sum(1).tolist() == [3, 2, 1, 4]


def test_selected_sequences_keep_what_all_sequences_share():
    shared = torch.arange(3)[None]
    one = batch([3, 2, 1], position_ids=shared, note="text")

    few = select(one, torch.tensor([2, 0]))

    assert few["input_ids"].tolist() == [[1, 0, 0], [1, 2, 3]]
    assert few["attention_mask"].sum(1).tolist() == [1, 3]
    assert few["position_ids"] is shared
    assert few["note"] == "text"


def test_a_scan_of_merged_batches_calls_the_model_less_and_has_the_same_scores(limit, monkeypatch):
    model, batches = tiny_model("roberta"), tiny_batches(sequences=36, batch_size=4)
    limit(0)
    expected = fp.linearity(model, batches, score_sequences=9, progress=False)
    stem, passes = Encoder.stem, []
    monkeypatch.setattr(Encoder, "stem", lambda self, *args: passes.append(1) or stem(self, *args))
    limit(100)

    scan = fp.linearity(model, batches, score_sequences=9, progress=False)

    tokens = sum(int(one["attention_mask"].sum()) for one in batches)
    assert len(passes) == 2 + len([*grouped(batches, 100)])  # one to check the runner, one to score
    assert scan.config["tokens"] == tokens
    for ours, theirs in zip(scan.rows, expected.rows, strict=True):
        numbers = {
            key: value
            for key, value in theirs.items()
            if isinstance(value, float) and key not in ("condition", "error_bound")
        }
        assert {key: ours[key] for key in numbers} == pytest.approx(numbers, abs=2e-6)


def test_a_nan_in_a_merged_group_names_its_batch_and_saves_no_part_of_it(tmp_path):
    model, batches = tiny_model("bert"), [{k: v.clone() for k, v in one.items()} for one in tiny_batches(batch_size=6)]
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[99] = torch.nan
    for one in batches:
        one["input_ids"].clamp_(max=98)
    batches[1]["input_ids"][0, 0] = 99

    with pytest.raises(NumericalError, match="batch 1: "):
        fp.linearity(model, batches, score_sequences=0, progress=False, checkpoint=Checkpoint(tmp_path))

    assert not list(tmp_path.iterdir())


def test_an_interrupted_scan_resumes_with_the_same_groups(limit, tmp_path):
    model, batches = tiny_model("bert"), tiny_batches(sequences=36, batch_size=4)
    limit(100)
    whole = fp.linearity(model, batches, score_sequences=9, progress=False)

    def cut():
        yield from batches[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fp.linearity(model, cut(), score_sequences=9, progress=False, checkpoint=Checkpoint(tmp_path))
    kept = fp.Moments.load(tmp_path / "moments.safetensors")[1]
    again = Checkpoint(tmp_path, resume=True)

    parts = fp.linearity(model, batches, score_sequences=9, progress=False, checkpoint=again)

    assert 0 < kept["batches_done"] < 5
    assert parts.rows == whole.rows
