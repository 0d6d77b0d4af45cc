"""A scan layer by layer that stops, whatever stops it, goes on with the next layer and gives the same rows."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.scan import group_rows, layer_scan, state_store
from fastprobe.scan.checkpoint import ROWS, Checkpoint
from fastprobe.scan.state_store import StateStore
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

OPTIONS = {"elements": ["layer", "ffn", "mlp"], "score_sequences": 5, "progress": False, "schedule": "layer"}
BATCHES = tiny_batches(sequences=24, batch_size=6)


def scan(family="llama", **options):
    return fp.linearity(tiny_model(family), BATCHES, **(OPTIONS | options))


def stopping_at(monkeypatch, group, error):
    """Raise an error, or send a signal, when the solve of the n-th group begins."""
    plain, calls = group_rows.solve_rows, []

    def solve(*args, **options):
        calls.append(1)
        if len(calls) == group:
            raise error
        return plain(*args, **options)

    monkeypatch.setattr(group_rows, "solve_rows", solve)
    return calls


def finished(folder):
    """Return the number of rows in the journal."""
    return len((folder / ROWS).read_text().splitlines()) - 1


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("interval", [0.0, 3600.0], ids=["states saved", "states computed again"])
@pytest.mark.parametrize("spans", [None, "0-2,1-3"])
def test_a_stopped_scan_goes_on_with_the_next_layer(family, interval, spans, tmp_path, monkeypatch):
    expected = scan(family, spans=spans)
    with monkeypatch.context() as patch:
        stopping_at(patch, 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            scan(family, spans=spans, checkpoint=Checkpoint(tmp_path, interval=interval))
    assert finished(tmp_path) == 6
    assert len(list(tmp_path.glob("states-*"))) == (interval == 0)

    calls = stopping_at(monkeypatch, 0, None)
    resumed = scan(family, spans=spans, checkpoint=Checkpoint(tmp_path, resume=True))

    assert len(calls) == (1 if spans is None else 3)
    assert resumed.rows == expected.rows
    assert {**resumed.config, "seconds": 0, "moment_bytes": 0} == {**expected.config, "seconds": 0, "moment_bytes": 0}


def test_another_budget_resumes_and_other_options_do_not(tmp_path, monkeypatch):
    expected = scan(folds=2)
    with monkeypatch.context() as patch:
        stopping_at(patch, 2, RuntimeError("stop"))
        with pytest.raises(RuntimeError, match="stop"):
            scan(folds=2, checkpoint=Checkpoint(tmp_path, interval=0.0))

    with pytest.raises(InputError, match=rf"^--resume: .*{ROWS} is of a run with another .*folds"):
        scan(folds=3, checkpoint=Checkpoint(tmp_path, resume=True))
    with pytest.raises(InputError, match=r"holds a run with schedule=layer, .* use that schedule or another --out"):
        scan(folds=2, schedule="batch", checkpoint=Checkpoint(tmp_path, resume=True))
    resumed = scan(folds=2, schedule="auto", memory="700kB", checkpoint=Checkpoint(tmp_path, resume=True))

    assert resumed.config["schedule"] == "layer"
    for one, other in zip(resumed.rows, expected.rows, strict=True):
        assert one["r2_cv"] == pytest.approx(other["r2_cv"], abs=1e-6)


def test_moments_of_a_scan_batch_by_batch_are_not_resumed_layer_by_layer(tmp_path):
    scan(schedule="batch", checkpoint=Checkpoint(tmp_path))

    with pytest.raises(InputError, match="holds a run with schedule=batch"):
        scan(checkpoint=Checkpoint(tmp_path, resume=True))


def test_a_disk_that_fills_loses_no_finished_row(tmp_path, monkeypatch):
    expected, plain = scan(), state_store.write_tensors

    def full(path, tensors):
        if path.stem.endswith("-0002"):  # states of depth 2
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        plain(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(state_store, "write_tensors", full)
        patch.setattr(layer_scan, "StateStore", lambda device, *_: StateStore(device, 0, 0, tmp_path))
        with pytest.raises(OSError, match="No space left"):
            scan(checkpoint=Checkpoint(tmp_path))
    assert finished(tmp_path) == 3
    assert not list(tmp_path.glob(".states-*"))

    assert scan(checkpoint=Checkpoint(tmp_path, resume=True)).rows == expected.rows


KILLED = """
    import os, signal
    import fastprobe as fp
    from fastprobe.scan import group_rows
    from fastprobe.scan.checkpoint import Checkpoint
    from fastprobe.testing.tiny_models import tiny_batches, tiny_model
    plain, calls = group_rows.solve_rows, []
    def solve(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **options)
    group_rows.solve_rows = solve
    batches = tiny_batches(sequences=24, batch_size=6)
    fp.linearity(tiny_model("llama"), batches, checkpoint=Checkpoint(FOLDER), **OPTIONS)
"""


def test_a_killed_scan_loses_the_layer_in_hand(tmp_path):
    code = f"FOLDER, OPTIONS = {str(tmp_path)!r}, {OPTIONS!r}\n{textwrap.dedent(KILLED)}"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert finished(tmp_path) == 6
    with (tmp_path / ROWS).open("a") as rows:
        rows.write(json.dumps([0, 6, {"half": "a row"}])[:-5])  # as if killed in the middle of a line

    assert scan(checkpoint=Checkpoint(tmp_path, resume=True)).rows == scan().rows
    Checkpoint(tmp_path, keep=False).finish()
    assert not list(tmp_path.iterdir())
