"""Runs that continue or are merged with other weights or other batches than they began with."""

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.models.digest import fingerprint
from fastprobe.models.resolve import resolve
from fastprobe.runtime.journal import Journal
from fastprobe.scan.checkpoint import Checkpoint
from fastprobe.scan.merging import merge_scans
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

BATCHES = tiny_batches()
BROKEN = {"input_ids": torch.full((2, 4), 10**6), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
"""A batch that ends a run."""


def scan(model, batches, folder, resume):
    checkpoint = Checkpoint(folder, resume=resume)
    return fp.linearity(model, batches, elements=["layer"], checkpoint=checkpoint, progress=False).rows


def orders(model, batches, folder, resume):
    return fp.commutativity(model, batches, [[1, 0, 2]], journal=Journal(folder, resume=resume), progress=False).rows


OTHERS = {
    "other weights": (lambda: tiny_model("llama", seed=1), BATCHES, "another weights|weights="),
    "other text": (lambda: tiny_model("llama"), tiny_batches(seed=1), "batch 0 was another one|other batches"),
    "other batch size": (lambda: tiny_model("llama"), tiny_batches(batch_size=9), "was another one|other batches"),
    "fewer batches": (lambda: tiny_model("llama"), tiny_batches(sequences=3), "was another one|other batches"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("run", [scan, orders])
def test_a_run_does_not_continue_with_another_model_or_text(run, name, tmp_path):
    make, batches, message = OTHERS[name]
    with pytest.raises(InputError, match="input_ids"):
        run(tiny_model("llama"), [*BATCHES[:2], BROKEN], tmp_path, False)
    with pytest.raises(InputError, match=message):
        run(make(), batches, tmp_path, True)

    resumed = run(tiny_model("llama"), BATCHES, tmp_path, True)
    assert resumed == run(tiny_model("llama"), BATCHES, tmp_path / "whole", False)


def test_a_run_that_ends_while_it_skips_batches_loses_nothing(tmp_path):
    def interrupted():
        yield BATCHES[0]
        raise KeyboardInterrupt

    with pytest.raises(InputError, match="input_ids"):
        scan(tiny_model("llama"), [*BATCHES[:2], BROKEN], tmp_path, False)
    with pytest.raises(KeyboardInterrupt):
        scan(tiny_model("llama"), interrupted(), tmp_path, True)

    resumed = scan(tiny_model("llama"), BATCHES, tmp_path, True)
    assert resumed == scan(tiny_model("llama"), BATCHES, tmp_path / "whole", False)


def test_scans_of_other_weights_or_of_the_same_batches_do_not_merge(tmp_path):
    parts = {"first": (0, BATCHES[:1]), "again": (0, BATCHES[:1]), "rest": (0, BATCHES[1:]), "other": (1, BATCHES[1:])}
    for name, (seed, batches) in parts.items():
        fp.linearity(tiny_model("bert", seed=seed), batches, elements=["layer"], progress=False).save(tmp_path / name)

    merged = merge_scans([tmp_path / "first", tmp_path / "rest"], fp.LeastSquares())
    assert merged.config["tokens"] == sum(int(batch["attention_mask"].sum()) for batch in BATCHES)
    with pytest.raises(InputError, match="differ in weights"):
        merge_scans([tmp_path / "first", tmp_path / "other"], fp.LeastSquares())
    with pytest.raises(InputError, match="again holds the same batches as another folder"):
        merge_scans([tmp_path / "first", tmp_path / "rest", tmp_path / "again"], fp.LeastSquares())


def test_a_fingerprint_changes_with_weights_and_hooks_only():
    model, same = tiny_model("bert"), tiny_model("bert")
    same.pooler.dense.weight.data.normal_()  # drawn at random if a file has none; it does not run
    points = resolve(model)
    before = fingerprint(model, points)
    assert fingerprint(same, resolve(same)) == before == fingerprint(model.train(), points)

    with fp.skip_scale(model, 0.5):
        assert fingerprint(model, points) != before
    assert fingerprint(model, points) == before
    for weight in (model.embeddings.word_embeddings.weight, model.encoder.layer[2].output.LayerNorm.bias):
        with torch.no_grad():
            weight.mul_(0.9)
        assert fingerprint(model, points) != before
        before = fingerprint(model, points)
