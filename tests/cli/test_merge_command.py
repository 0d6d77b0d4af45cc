"""``fastprobe merge``."""

import json

import pytest

import fastprobe as fp
from fastprobe.data.demo import demo_text


def test_merged_parts_score_as_the_whole(scan, run, tmp_path):
    topics = list(demo_text().values())[:4]
    for name, texts in {"a": topics[:2], "b": topics[2:], "ab": topics}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        scan(
            "--text",
            tmp_path / f"{name}.jsonl",
            "--tokens",
            "1M",
            "--folds",
            "0",
            "--keep-moments",
            out=tmp_path / name,
        )

    code, out, _ = run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "merged")

    assert code == 0
    assert out.startswith("r2 ")  # the summary of a scan without folds
    for merged, whole in zip(fp.load(tmp_path / "merged").rows, fp.load(tmp_path / "ab").rows, strict=True):
        assert merged["tokens"] == whole["tokens"]
        assert merged["r2"] == pytest.approx(whole["r2"], abs=1e-6)
        assert merged["cosine"] is None


def test_scans_of_different_options_do_not_merge(scan, run, tmp_path):
    scan("--keep-moments", "--layers", "0", out=tmp_path / "a")
    scan("--keep-moments", "--layers", "1", out=tmp_path / "b")

    code, _, err = run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "merged")

    assert (code, err.count("\n")) == (2, 1)
    assert "differ in fits; merge scans of one model with the same options" in err
    assert not (tmp_path / "merged").exists()


def test_one_folder_is_not_enough(scan, run, tmp_path):
    scan("--elements", "layer")

    code, out, err = run("merge", tmp_path / "out", "--out", tmp_path / "merged")

    assert (code, out, err) == (2, "", "fastprobe: merge: must be two folders or more, got 1\n")


def test_a_folder_is_not_merged_with_itself(scan, run, tmp_path):
    scan("--elements", "layer")

    code, out, err = run("merge", tmp_path / "out", tmp_path / "." / "out", "--out", tmp_path / "twice")

    assert (code, out) == (2, "")
    assert err == "fastprobe: merge: a folder is named twice, and its tokens would count twice\n"
