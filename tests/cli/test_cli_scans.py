"""``linearity``, ``points``, ``merge`` and ``plot`` as a user types them."""

import json
import os
import signal

import pytest
from safetensors import SafetensorError

import fastprobe as fp
from fastprobe.data.text import demo_text
from fastprobe.models.unpadded.encoder import EncoderLayer


def test_a_scan_writes_its_files_and_prints_its_table(scan, tmp_path):
    code, out, err = scan()

    assert code == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"scores.json", "scores.csv", "moments.safetensors", "linearity.png"}
    assert sum(line.startswith("mlp_act") for line in out.splitlines()) == 2
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    for part in ("forward", "moments", "solve", "score"):
        assert f"{part} " in err.splitlines()[-1]
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 1 + 20


def test_json_is_the_only_thing_on_stdout(scan, tmp_path):
    code, out, err = scan("--json", "--quiet")

    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "out" / "scores.json").read_text())
    assert err == ""


def test_a_saved_scan_loads_and_plots(scan, run, tmp_path):
    scan("--spans", "all")

    loaded = fp.load(tmp_path / "out")
    code, _, _ = run("plot", tmp_path / "out", "--metric", "cosine")

    assert loaded.matrix("r2").shape == (10, 2)
    assert loaded.matrix("r2", spans=True).shape == (2, 2)
    assert len(loaded.to_pandas()) == 23
    assert loaded.top(1, "r2")[0]["element"] == "attn_proj"
    assert code == 0
    assert (tmp_path / "out" / "cosine.png").read_bytes()[:4] == b"\x89PNG"


def test_points_lists_the_identities(run, model_folder):
    code, out, _ = run("points", model_folder)

    assert code == 0
    assert out.count("holds") == 2 * 4 + 1
    assert "norm(attn_out + resid_pre) = resid_mid" in out


def interrupt_at(monkeypatch, call):
    """Press Ctrl-C in the ``call``-th pass through an FFN of the runner."""
    plain, calls = EncoderLayer.ffn, []

    def ffn(*args):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*args)

    monkeypatch.setattr(EncoderLayer, "ffn", ffn)


def test_a_resumed_scan_equals_an_uninterrupted_one(scan, tmp_path, monkeypatch):
    tokens = ("--tokens", "10k")  # three passes: batches go through the model together
    assert "there is nothing in" in scan("--resume", *tokens, out=tmp_path / "whole")[2]
    with monkeypatch.context() as patch:
        interrupt_at(patch, call=8)  # the check of the runner makes two, each pass two more

        code, _, err = scan(*tokens, out=tmp_path / "parts")

    assert code == 130
    assert "--resume" in err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["moments.safetensors"]
    code, _, _ = scan("--resume", *tokens, out=tmp_path / "parts")
    assert code == 0
    for whole, parts in zip(fp.load(tmp_path / "whole").rows, fp.load(tmp_path / "parts").rows, strict=True):
        assert whole.keys() == parts.keys()
        for column, value in whole.items():
            assert parts[column] == (pytest.approx(value, abs=1e-12) if isinstance(value, float) else value), column


def test_resuming_another_scan_is_refused(scan, tmp_path):
    scan()
    before = (tmp_path / "out" / "moments.safetensors").read_bytes()

    code, _, err = scan("--resume", "--folds", "3")

    assert code == 2
    assert "folds=5, this one has folds=3" in err
    assert (tmp_path / "out" / "moments.safetensors").read_bytes() == before


def test_merged_parts_score_as_the_whole(scan, run, tmp_path):
    topics = list(demo_text().values())[:4]
    for name, texts in {"a": topics[:2], "b": topics[2:], "ab": topics}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        scan("--text", tmp_path / f"{name}.jsonl", "--tokens", "1M", "--folds", "0", out=tmp_path / name)

    code, _, _ = run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "merged")

    assert code == 0
    for merged, whole in zip(fp.load(tmp_path / "merged").rows, fp.load(tmp_path / "ab").rows, strict=True):
        assert merged["tokens"] == whole["tokens"]
        assert merged["r2"] == pytest.approx(whole["r2"], abs=1e-6)
        assert merged["cosine"] is None


def test_scans_of_different_options_do_not_merge(scan, run, tmp_path):
    scan("--layers", "0", out=tmp_path / "a")
    scan("--layers", "1", out=tmp_path / "b")

    code, _, err = run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "merged")

    assert (code, err.count("\n")) == (2, 1)
    assert "differ in fits" in err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--elements", "fnn"), "unknown element 'fnn'"),
        (("--layers", "0-7"), "no layer 2; the model has layers 0 to 1"),
        (("--layers", "first"), "'first' is not a layer"),
        (("--tokens", "many"), "'many' is not a number of tokens like"),
        (("--tokens", "0"), "tokens: must be 1 or more"),
        (("--max-seq-len", "2"), "must be more than the 2 special tokens"),
        (("--batch-size", "big"), "--batch-size: 'big' is not a number"),
        (("--dtype", "int8"), "dtype: 'int8' is not one of"),
        (("--device", "gpu"), "device: 'gpu' is not a device"),
        (("--backend", "cuda"), "backend 'cuda': "),
        (("--backend", "abacus"), "'abacus' is not one of auto, cuda"),
        (("--text", "nowhere.txt"), "nowhere.txt is not a file"),
        (("--text", "EMPTY"), "no tokens in it"),
        (("--text", "LATIN"), "not UTF-8 text"),
        (("--text", "BROKEN"), "line 2: not JSON"),
        (("--text", "COLUMN"), "no text in column 'text' (it has body)"),
    ],
)
def test_unusable_arguments_get_one_line(scan, tmp_path, arguments, message):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1") * 9)
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "column.jsonl").write_text('{"body": "fine"}\n')
    files = {"EMPTY": "empty.txt", "LATIN": "latin.txt", "BROKEN": "broken.jsonl", "COLUMN": "column.jsonl"}

    code, out, err = scan(*(tmp_path / files[a] if a in files else a for a in arguments), "--quiet")

    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_full_disk_leaves_what_was_there(scan, tmp_path, monkeypatch):
    scan()
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("fastprobe.regression.moments.save_file", full)
    code, _, err = scan("--tokens", "500")

    assert code == 2
    assert "moments.safetensors: No space left on device; no file is half written" in err
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
