"""A scan whose moments were kept is extended to more tokens."""

import numpy as np
import pytest

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.models.loading import load_model
from fastprobe.scan.checkpoint import Checkpoint
from fastprobe.scan.moment_pass import MomentPass

TEXT = [" ".join(f"word {n} of sentence {s}" for n in range(s % 7 + 1)) for s in range(80)]


@pytest.fixture(scope="module")
def loaded(model_folder):
    return load_model(str(model_folder), "float64")


def scan(loaded, tokens, checkpoint=None):
    batches = fp.token_batches(TEXT, loaded[1], tokens=tokens, max_seq_len=24, batch_size=4)
    return fp.linearity(loaded[0], batches, elements=["layer", "mlp"], progress=False, checkpoint=checkpoint)


def kept(folder, tokens, **options):
    return Checkpoint(folder, {"token_budget": tokens}, **options)


@pytest.mark.parametrize("tokens", [200, 201, 215, 400])
def test_an_extended_scan_equals_one_of_as_many_tokens(loaded, tokens, tmp_path):
    scan(loaded, tokens, kept(tmp_path, tokens))

    longer = scan(loaded, 900, kept(tmp_path, 900, resume=True))

    expected = scan(loaded, 900)
    assert longer.config["sequences"] == expected.config["sequences"]
    for one, other in zip(longer.rows, expected.rows, strict=True):
        assert one["tokens"] == other["tokens"]
        for column in ("r2", "r2_cv", "cosine", "cosine_cv", "anisotropy", "cka", "rank"):
            np.testing.assert_allclose(one[column], other[column], rtol=0, atol=1e-9)


def test_only_new_batches_are_added(loaded, tmp_path, monkeypatch):
    scan(loaded, 400, kept(tmp_path, 400))
    added, plain = [], MomentPass.add
    monkeypatch.setattr(MomentPass, "add", lambda self, batches: added.extend(batches) or plain(self, batches))

    scan(loaded, 480, kept(tmp_path, 480, resume=True))

    assert 80 <= sum(int(batch["attention_mask"].sum()) for batch in added) < 80 + 2 * 4 * 24


def test_a_scan_is_not_cut_to_fewer_tokens(loaded, tmp_path):
    scan(loaded, 400, kept(tmp_path, 400))

    with pytest.raises(InputError, match="holds a run with tokens=400, this one has tokens=200"):
        scan(loaded, 200, kept(tmp_path, 200, resume=True))
