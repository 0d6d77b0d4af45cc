"""What holds for every command: its version, and one line where a model or a folder is not what it should be."""

import pytest

import fastprobe as fp


def test_the_version_is_printed(run):
    assert run("--version") == (0, f"{fp.__version__}\n", "")


def test_a_model_that_is_not_there_gets_one_line(run, tmp_path):
    code, _, err = run("points", tmp_path / "nothing")

    assert (code, err.count("\n")) == (2, 1)
    assert "could not be loaded" in err


def test_a_folder_without_a_model_gets_one_line(run, tmp_path):
    code, _, err = run("points", tmp_path)

    assert (code, err.count("\n")) == (2, 1)
    assert "has no config.json in it, so it is not the folder of a model" in err


@pytest.mark.parametrize("command", ["linearity", "permute"])
def test_a_folder_that_cannot_be_made_gets_one_line(run, model_folder, command, tmp_path):
    (tmp_path / "file").write_text("")

    code, _, err = run(command, model_folder, "--tokens", "600", "--quiet", "--out", tmp_path / "file" / "out")

    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be made: Not a directory" in err
