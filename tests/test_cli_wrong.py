"""What no command can use: one line that names it, before anything is run."""

import pytest

from tests.test_cli import model_folder, run  # noqa: F401, fixtures

SIZES = ("--tokens", "600", "--max-seq-len", "32", "--quiet")


@pytest.fixture
def command(run, model_folder, tmp_path):  # noqa: F811
    """A command on the tiny model, small enough for a test."""
    return lambda name, *arguments: run(name, model_folder, *SIZES, "--out", tmp_path / "out", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [("linearity", "--alpha", "nan"), ("probe", "--alpha", "inf"), ("ablate", "--mode", "linear", "--alpha", "nan")],
)
def test_a_ridge_penalty_is_a_finite_number(command, arguments):
    code, out, err = command(*arguments)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "alpha: must be 0 or more and finite, got" in err


@pytest.mark.parametrize("name", ["linearity", "probe", "ablate"])
def test_a_seed_has_64_bits(command, name):
    code, out, err = command(name, "--seed", 2**63, *(["--mode", "resample"] if name == "ablate" else []))

    assert (code, out, err) == (2, "", f"fastprobe: seed: must be a number of 64 bits, got {2**63}\n")
