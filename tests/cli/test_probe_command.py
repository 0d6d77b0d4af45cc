"""``fastprobe probe``."""

import pytest

import fastprobe as fp

SIZES = ("--tokens", "1500", "--max-seq-len", "32", "--batch-size", "8")


@pytest.fixture
def probe(run, model_folder, tmp_path):
    """``fastprobe probe`` of the tiny model."""
    return lambda *arguments: run("probe", model_folder, *SIZES, "--out", tmp_path / "out", *arguments)


def test_states_are_probed_shown_and_drawn(probe, run, tmp_path):
    code, out, err = probe("--orders", "1,0", "--orders", "drops")

    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["r2_cv,", "%", "0", "1", "2", "learnt", "at"]
    assert [lines[at].strip() for at in (1, 9, 17)] == ["the model itself", "1,0", "drop 0"]
    assert sum(line.startswith("word_piece") for line in lines) == 4
    assert max(map(len, lines)) <= 80
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scores.json", "scores.csv", "probe.png"}
    assert "rows from 4 layer runs a batch" in err
    bars = [line.split("\r")[-1] for line in err.split("\n")]
    assert [bar.split("|")[0] for bar in bars[:3]] == ["sums: 100%", "classifiers: 100%", "accuracy: 100%"]
    assert fp.load(tmp_path / "out").orders == ["0,1", "1,0", "1", "0"]
    assert run("plot", tmp_path / "out", "--metric", "accuracy")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "pos"], "tasks: 'pos' is not one of token"),
        (["--orders", "5"], "there is no layer 5"),
        (["--metric", "loss"], "--metric: 'loss' is not one of r2, r2_cv"),
        (["--score-sequences", "few"], "--score-sequences: must be an integer, got 'few'"),
    ],
)
def test_unusable_probe_arguments_get_one_line(probe, arguments, message):
    code, out, err = probe(*arguments, "--quiet")

    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
