"""Checkpoints hold whole batches only, whatever stops a scan, and a resumed scan gives the uninterrupted numbers."""

import os
import signal

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import NumericalError
from fastprobe.regression.moments import Moments
from fastprobe.scan.checkpoint import FILE, Checkpoint
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

OPTIONS = {"elements": ["layer", "ffn"], "score_sequences": 0, "progress": False}
BATCHES = tiny_batches(sequences=24, batch_size=6)
BAD = 2
"""The batch that fails in the middle layer, after the first layer was added."""


class FailingScan:
    """Scans of a model that does something in its middle layer when it sees one of the batches."""

    def __init__(self, fail):
        self.model, self.fail, self.at = tiny_model("bert"), fail, None
        self.model.encoder.layer[1].output.dense.register_forward_hook(self._in_the_middle)

    def _in_the_middle(self, module, args, out):
        if self.at == BAD and self.fail is not None:
            return self.fail(out)
        return out

    def _stream(self, batches):
        for self.at, batch in enumerate(batches):
            yield batch

    def run(self, batches=BATCHES, **checkpoint):
        kept = Checkpoint(**checkpoint) if checkpoint else None
        return fp.linearity(self.model, self._stream(batches), checkpoint=kept, **OPTIONS)


def with_a_nan(out):
    return out.index_fill(1, torch.tensor([0]), torch.nan)


def pressing_ctrl_c(times):
    def press(out):
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
        return out

    return press


def saved_batches(folder):
    """The number of batches in a checkpoint, whose moments must be theirs to the last bit; 0 without one."""
    if not (folder / FILE).exists():
        return 0
    moments, config = Moments.load(folder / FILE)
    done = config["batches_done"]
    expected = FailingScan(None).run(BATCHES[:done]).moments
    assert moments.tokens == expected.tokens
    assert all(torch.equal(tensor, expected.tensors()[name]) for name, tensor in moments.tensors().items())
    return done


@pytest.mark.parametrize(("interval", "least", "most"), [(0.0, 1, BAD), (3600.0, 0, 0)], ids=["always", "hourly"])
def test_a_nan_leaves_the_batches_of_the_last_interval(interval, least, most, tmp_path):
    scan = FailingScan(with_a_nan)

    with pytest.raises(NumericalError, match=rf"^batch {BAD}: (mlp_out|resid_post)\.1: .*NaN"):
        scan.run(folder=tmp_path, interval=interval)

    assert least <= saved_batches(tmp_path) <= most
    scan.fail = None
    assert scan.run(folder=tmp_path, resume=True).rows == FailingScan(None).run().rows


@pytest.mark.parametrize(("interval", "least", "most"), [(0.0, 1, BAD), (3600.0, 0, 0)], ids=["always", "hourly"])
def test_a_second_ctrl_c_in_the_middle_of_a_batch_saves_no_part_of_it(interval, least, most, tmp_path):
    scan = FailingScan(pressing_ctrl_c(2))

    with pytest.raises(KeyboardInterrupt):
        scan.run(folder=tmp_path, interval=interval)

    assert least <= saved_batches(tmp_path) <= most
    scan.fail = None
    assert scan.run(folder=tmp_path, resume=True).rows == FailingScan(None).run().rows


def test_a_first_ctrl_c_waits_for_the_end_of_the_batch_and_loses_nothing(tmp_path):
    scan = FailingScan(pressing_ctrl_c(1))

    with pytest.raises(KeyboardInterrupt):
        scan.run(folder=tmp_path, interval=3600.0)

    assert saved_batches(tmp_path) == BAD + 1
    scan.fail = None
    assert scan.run(folder=tmp_path, resume=True).rows == FailingScan(None).run().rows


@pytest.fixture
def together():
    """A model and batches that its runner takes in one pass; one of them has a token whose embedding is NaN."""
    model, batches = tiny_model("bert"), [{k: v.clone() for k, v in batch.items()} for batch in BATCHES]
    for number, batch in enumerate(batches):
        batch["input_ids"].clamp_(max=97)
        batch["input_ids"][0, 0] = 99 if number == BAD else 1
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[99] = torch.nan
    return model, batches


def test_of_batches_that_run_together_the_one_that_fails_is_named(together, tmp_path):
    with pytest.raises(NumericalError, match=rf"^batch {BAD}: resid_pre\.0: .*NaN"):
        fp.linearity(*together, checkpoint=Checkpoint(tmp_path), **OPTIONS)

    assert saved_batches(tmp_path) == 0


def test_batches_that_fail_only_together_are_all_named(together, monkeypatch):
    # One by one, all batches are finite.
    monkeypatch.setattr("fastprobe.scan.moment_pass.unit_sums", lambda *args, **options: {})

    with pytest.raises(NumericalError, match=r"^batches 0 to 3, only when run together: resid_pre\.0: .*NaN"):
        fp.linearity(*together, **OPTIONS)
