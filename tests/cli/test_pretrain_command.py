"""``fastprobe pretrain``, and its model in the other commands."""

import pytest

from fastprobe.data.demo import demo_text


def test_a_model_is_trained_and_every_command_takes_it(run, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(list(demo_text().values())[:12]))
    size = ["--layers", "2", "--hidden-size", "32", "--vocab-size", "400", "--max-seq-len", "32"]

    code, out, err = run(
        "pretrain", "--variant", "no-ffn", *size, "--match", "compute", "--steps", "10",
        "--text", tmp_path / "text.txt", "--trainer", "weight_decay=0.1", "-o", tmp_path / "model",
    )  # fmt: skip

    assert code == 0
    table = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert int(table["no-ffn"][3]) > int(table["bert"][3]) == 10
    assert float(table["ratio"][3]) == pytest.approx(1 / float(table["ratio"][2]), rel=0.05)
    assert "the unigram loss" in err
    assert "more --steps or a lower --learning-rate may help" in err  # after ten steps
    assert (tmp_path / "model" / "pretraining.png").read_bytes()[:4] == b"\x89PNG"
    options = ("--tokens", "800", "--max-seq-len", "32", "-o")
    for command in ("linearity", "permute", "commutator"):
        assert run(command, tmp_path / "model", *options, tmp_path / command)[0] == 0
    assert run("points", tmp_path / "model")[0] == 0
    code, _, err = run("permute", tmp_path / "model", "-o", tmp_path / "out")
    assert (code, err) == (2, "fastprobe: --max-seq-len: must be at most 32, the positions of this model, got 128\n")
    assert run("plot", tmp_path / "model", "--metric", "loss")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "albert"], "variant: 'albert' is not one of bert"),
        (["--trainer", "bf16"], "--trainer: must be NAME=VALUE, like bf16=true, got 'bf16'"),
        (["--resume"], "there are no checkpoints in"),
        (["--text", "nowhere.txt"], "--text: nowhere.txt is not a file"),
    ],
)
def test_unusable_pretrain_arguments_get_one_line(run, tmp_path, arguments, message):
    code, _, err = run("pretrain", *arguments, "-o", tmp_path / "model")

    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
