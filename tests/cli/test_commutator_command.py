"""``fastprobe commutator``."""


def test_pairs_are_shown_and_drawn(run, model_folder, tmp_path):
    code, out, _ = run("commutator", model_folder, "--tokens", "600", "--out", tmp_path / "out")

    assert code == 0
    assert out.splitlines()[1].startswith("0 1 ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scores.json", "scores.csv", "commutator.png"}
