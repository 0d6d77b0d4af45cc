"""Scans of version 0.1.0, which calls the column ``anisotropy`` ``cone``."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import fastprobe as fp
from fastprobe.scan.checkpoint import FILE, Checkpoint
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

SCAN = {"elements": ["ffn", "mlp"], "folds": 2, "progress": False}


@pytest.fixture(scope="module")
def scan():
    return fp.linearity(tiny_model("gpt2"), tiny_batches(), **SCAN)


def written_by_0_1_0(folder):
    """Change the files of a scan to what version 0.1.0 wrote."""
    scores = folder / "scores.json"
    if scores.exists():
        scores.write_text(scores.read_text().replace('"anisotropy"', '"cone"'))
    with safe_open(folder / FILE, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    plan = json.loads(metadata["plan"])
    plan["cones"] = plan.pop("units")
    save_file(tensors, folder / FILE, metadata | {"plan": json.dumps(plan)})
    return folder


@pytest.fixture
def old_folder(scan, tmp_path):
    scan.save(tmp_path)
    return written_by_0_1_0(tmp_path)


def test_an_old_scan_is_loaded_with_the_column_anisotropy(scan, old_folder):
    assert '"cone"' in (old_folder / "scores.json").read_text()

    loaded = fp.load(old_folder)

    assert loaded.rows == scan.rows
    assert "anisotropy" in loaded.rows[0]
    assert "cone" not in loaded.rows[0]


def test_the_metric_cone_is_anisotropy_with_a_warning(scan, tmp_path):
    with pytest.warns(DeprecationWarning, match="'cone' is now 'anisotropy'"):
        assert np.array_equal(scan.matrix("cone"), scan.matrix("anisotropy"))
    with pytest.warns(DeprecationWarning, match="'cone' is now 'anisotropy'"):
        assert scan.top(2, "cone") == scan.top(2, "anisotropy")
    with pytest.warns(DeprecationWarning, match="'cone' is now 'anisotropy'"):
        figure = scan.plot(tmp_path / "picture.png", "cone")
    assert figure.axes[0].get_ylabel() == "anisotropy"


def test_the_command_plot_accepts_the_metric_cone(run, old_folder):
    code, _, _ = run("plot", old_folder, "--metric", "cone")

    assert code == 0
    assert list(old_folder.glob("*.png"))


def test_an_old_checkpoint_is_resumed(scan, tmp_path):
    batches, interrupted = tiny_batches(), RuntimeError("interrupted")

    def two_batches():
        yield from batches[:2]
        raise interrupted

    with pytest.raises(RuntimeError, match="interrupted"):
        fp.linearity(tiny_model("gpt2"), two_batches(), **SCAN, checkpoint=Checkpoint(tmp_path))
    written_by_0_1_0(tmp_path)

    resumed = fp.linearity(tiny_model("gpt2"), batches, **SCAN, checkpoint=Checkpoint(tmp_path, resume=True))

    assert resumed.rows == scan.rows
