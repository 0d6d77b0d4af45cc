"""Files that version 0.1.0 wrote are read by this version (tests/saved/0.1.0)."""

import json
import shutil
from pathlib import Path

import pytest

import fastprobe as fp
from fastprobe.runtime.journal import Journal
from fastprobe.scan.checkpoint import Checkpoint
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

SAVED = Path(__file__).parent / "saved" / "0.1.0"
RESULTS = ["linearity", "orders", "commutator", "ablation", "probe"]
SCAN = {"elements": ["mlp", "attn_proj"], "layers": [0], "folds": 2, "progress": False}


@pytest.fixture
def folder(tmp_path):
    """A copy of a saved folder that a run may write to."""
    return lambda name: Path(shutil.copytree(SAVED / name, tmp_path / name))


def saved_rows(name):
    return json.loads((SAVED / name / "scores.json").read_text())["rows"]


def assert_same_scores(rows, saved):
    assert len(rows) == len(saved)
    for row, old in zip(rows, saved, strict=True):
        for column in (old.keys() & row.keys()) - {"note"}:  # its words change between versions
            expected = old[column]
            assert row[column] == (pytest.approx(expected, rel=1e-6) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_loads_with_its_numbers_and_plots(name, tmp_path):
    result = fp.load(SAVED / name)

    assert_same_scores(result.rows, saved_rows(name))
    result.plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_moments_load_and_give_the_saved_scores():
    moments, config = fp.Moments.load(SAVED / "linearity" / "moments.safetensors")

    assert moments.tokens == config["tokens"]
    assert moments.plan.folds == 2


def test_a_scan_resumes_from_an_old_checkpoint(folder):
    checkpoint = Checkpoint(folder("interrupted"), {"model": "tiny llama"}, resume=True)

    scan = fp.linearity(tiny_model("llama"), tiny_batches(sequences=24), checkpoint=checkpoint, **SCAN)

    assert_same_scores(scan.rows, saved_rows("whole"))


def test_orders_resume_from_an_old_journal(folder):
    orders = fp.orders.swaps(3) + fp.orders.drops(3)
    journal = Journal(folder("orders_interrupted"), {"model": "tiny bert"}, resume=True)

    effects = fp.commutativity(tiny_model("bert"), tiny_batches(sequences=24), orders, journal=journal, progress=False)

    assert_same_scores(effects.rows, saved_rows("orders"))
    assert effects.config["layer_forwards_run"] < 48  # of an uninterrupted run
