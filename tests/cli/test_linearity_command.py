"""``fastprobe linearity``."""

import json
import os
import signal

import pytest
from safetensors import SafetensorError

import fastprobe as fp
from fastprobe.models.points import ELEMENTS
from fastprobe.models.unpadded.encoder import EncoderLayer


def test_a_scan_writes_its_files_and_prints_a_summary(scan, tmp_path):
    code, out, err = scan()

    assert code == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"scores.json", "scores.csv", "linearity.png"}
    head, *lines = out.splitlines()
    assert head.split()[:3] == ["nonlinearity", "rows", "mean"]
    assert [line.split()[0] for line in lines] == list(ELEMENTS)
    assert max(map(len, lines)) <= 80
    assert "--full prints every row" in err
    for part in ("forward", "moments", "solve", "score"):
        assert f"{part} " in err.splitlines()[-1]
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 1 + 20


def test_the_full_table_follows_the_summary(scan):
    _, summary, _ = scan("--quiet")

    code, out, err = scan("--quiet", "--full", "--overwrite")

    assert (code, err) == (0, "")
    assert out.startswith(summary)
    table = out.removeprefix(summary).splitlines()
    assert sum(line.startswith("mlp_act") for line in table) == 2
    assert max(map(len, table)) <= 80
    assert "…" not in out


def test_marked_rows_are_counted_with_their_reason(scan):
    code, out, err = scan("--tokens", "20")  # fewer than the 24 columns of x

    assert code == 0
    assert out.splitlines()[0].endswith("marked *")
    assert "* 20 of 20 rows: cannot be said with 20 tokens; at least 120 would do" in err
    assert all(line.split()[1:] == ["2", "2"] for line in out.splitlines()[1:])  # rows and marks, but no numbers
    assert "--full prints every row, marked * if one of these notes applies" in err


def test_json_is_the_only_output(scan, tmp_path):
    code, out, err = scan("--json", "--quiet")

    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "out" / "scores.json").read_text())
    assert err == ""


def interrupt_at(monkeypatch, call):
    """Raise KeyboardInterrupt in the ``call``-th call of an FFN of the runner."""
    plain, calls = EncoderLayer.ffn, []

    def ffn(*args):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*args)

    monkeypatch.setattr(EncoderLayer, "ffn", ffn)


def test_a_resumed_scan_equals_an_uninterrupted_one(scan, tmp_path, monkeypatch):
    tokens = ("--tokens", "10k")  # three calls of the model, because batches are merged
    assert "there is nothing in" in scan("--resume", *tokens, out=tmp_path / "whole")[2]
    with monkeypatch.context() as patch:
        interrupt_at(patch, call=8)  # the check of the runner makes two calls, each pass two more

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


def test_moments_are_kept_if_asked_for_and_announced_with_their_size(scan, tmp_path):
    code, _, err = scan("--keep-moments")

    assert code == 0
    kept = tmp_path / "out" / "moments.safetensors"
    assert f"{kept} (" in err.splitlines()[0]
    assert "is written every 60 s for --resume and kept" in err.splitlines()[0]
    assert "moments.safetensors" in err.splitlines()[-2]
    assert fp.Moments.load(kept)[0].tokens == fp.load(tmp_path / "out").config["tokens"]


def test_a_scan_does_not_resume_with_other_options(scan, tmp_path):
    scan("--keep-moments")
    before = (tmp_path / "out" / "moments.safetensors").read_bytes()

    code, _, err = scan("--resume", "--folds", "3")

    assert code == 2
    assert "folds=5, this one has folds=3" in err
    assert (tmp_path / "out" / "moments.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--elements", "fnn"), "unknown element 'fnn'"),
        (("--layers", "0-7"), "no layer 2; the model has layers 0 to 1"),
        (("--layers", "first"), "'first' is not a layer"),
        (("--tokens", "many"), "tokens: must be a number like 5000, 100k or 1.5M, got 'many'"),
        (("--tokens", "0"), "tokens: must be 1 or more"),
        (("--max-seq-len", "2"), "must be more than the 2 special tokens"),
        (("--batch-size", "big"), "--batch-size: must be an integer, got 'big'"),
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
def test_unusable_linearity_arguments_get_one_line(scan, tmp_path, arguments, message):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1") * 9)
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "column.jsonl").write_text('{"body": "fine"}\n')
    files = {"EMPTY": "empty.txt", "LATIN": "latin.txt", "BROKEN": "broken.jsonl", "COLUMN": "column.jsonl"}

    code, out, err = scan(*(tmp_path / files[a] if a in files else a for a in arguments), "--quiet")

    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_full_disk_leaves_the_former_files(scan, tmp_path, monkeypatch):
    scan("--keep-moments")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("fastprobe.runtime.tensor_file.save_file", full)
    code, _, err = scan("--tokens", "500", "--overwrite", "--keep-moments")

    assert code == 2
    assert "moments.safetensors: No space left on device; no file is half written" in err
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def rows_of(folder):
    return [(row["element"], row["layer"], row["r2_cv"], row["cosine_cv"]) for row in fp.load(folder).rows]


def test_a_scan_layer_by_layer_says_what_it_takes_and_leaves_the_same_files(scan, tmp_path):
    scan(out=tmp_path / "batch")

    code, _, err = scan("--schedule", "layer", "--memory", "40MB")

    assert code == 0
    said = next(line for line in err.splitlines() if line.startswith("layer by layer, as asked: sums of one layer"))
    for part in ("of 40.0 MB", "states", "weights", "each layer runs twice on all tokens"):
        assert part in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scores.json", "scores.csv", "linearity.png"}
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "batch")


def test_an_interrupted_scan_layer_by_layer_resumes(scan, tmp_path, monkeypatch):
    options = ("--schedule", "layer", "--score-sequences", "4")
    with monkeypatch.context() as patch:
        interrupt_at(patch, call=5)  # two of the check, two of the first layer

        code, _, err = scan(*options, out=tmp_path / "parts")

    assert code == 130
    assert "layers.jsonl is kept: continue with --resume" in err.splitlines()[-1]
    assert "holds layers.jsonl; continue it with --resume" in scan(*options, out=tmp_path / "parts")[2]
    assert scan("--resume", *options, out=tmp_path / "parts")[0] == 0
    scan(*options, out=tmp_path / "whole")
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")


def test_weights_on_disk_are_scanned_layer_by_layer(scan, tmp_path):
    pytest.importorskip("accelerate")
    scan(out=tmp_path / "memory")

    code, _, err = scan("--device-map", "disk")

    assert code == 0
    assert "layer by layer, because weights are offloaded" in err
    for one, other in zip(rows_of(tmp_path / "out"), rows_of(tmp_path / "memory"), strict=True):
        assert one[2] == pytest.approx(other[2], abs=1e-6)


def test_a_scan_says_when_it_stops_at_a_limit(scan, tmp_path):
    code, _, err = scan("--until", "0.5", "--elements", "layer")

    assert code == 0
    config = json.loads((tmp_path / "out" / "scores.json").read_text())["config"]
    assert config["until"] == 0.5
    assert f"until: every r2_cv_se is below 0.5 after {config['tokens']:,} tokens" in err


def test_a_kept_scan_is_extended_to_more_tokens(scan, tmp_path):
    scan("--keep-moments", "--tokens", "1100")

    assert scan("--resume", "--tokens", "1500")[0] == 0

    scan("--tokens", "1500", out=tmp_path / "whole")
    for one, other in zip(rows_of(tmp_path / "out"), rows_of(tmp_path / "whole"), strict=True):
        assert one[2] == pytest.approx(other[2], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--schedule", "rows"), "schedule: must be one of auto, batch, layer, got 'rows'"),
        (("--memory", "lots"), "memory: must be a number of bytes above 0, like 8GB or 500MB, got 'lots'"),
        (("--memory", "10kB", "--schedule", "layer"), "alone takes"),
        (("--device-map", "moon"), "device_map: must be one of auto, disk, got 'moon'"),
        (("--until", "0.1", "--schedule", "layer"), "until: looks at all layers after some batches"),
        (("--until", "-1"), "until: must be above 0 and finite, got -1.0"),
        (("--keep-moments", "--schedule", "layer"), "--keep-moments: a scan layer by layer lets its sums go"),
    ],
)
def test_unusable_schedules_get_one_line(scan, arguments, message):
    code, out, err = scan(*arguments, "--quiet")

    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_tokens_that_are_skipped_do_not_count(scan, run, tmp_path):
    scan("--elements", "layer", "--skip-first", "1", "--skip-special", "--keep-moments", out=tmp_path / "skipped")
    scan("--elements", "layer", "--keep-moments", out=tmp_path / "all")

    skipped, everything = fp.load(tmp_path / "skipped"), fp.load(tmp_path / "all")

    assert skipped.config["counted"] == "skip_first=1, skip_special=True"
    assert "counted" not in everything.config
    assert skipped.config["sequences"] == everything.config["sequences"]
    assert skipped.config["tokens"] == everything.config["tokens"] - 2 * everything.config["sequences"]  # [CLS], [SEP]
    _, _, err = scan("--elements", "layer", "--skip-first", "1", "--resume", out=tmp_path / "skipped")
    assert "holds a run with counted=" in err
    _, _, err = run("merge", tmp_path / "skipped", tmp_path / "all", "--out", tmp_path / "merged")
    assert "differ in counted" in err
