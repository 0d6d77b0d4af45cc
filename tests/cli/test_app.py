"""Behaviour of every command: version, errors in one line, exit codes."""

import json

import huggingface_hub
import pytest

import fastprobe as fp


def test_version_is_printed(run):
    assert run("--version") == (0, f"{fp.__version__}\n", "")


def test_missing_model_gets_one_line(run, tmp_path):
    code, _, err = run("points", tmp_path / "nothing")

    assert (code, err.count("\n")) == (2, 1)
    assert "could not be loaded" in err


def test_folder_without_model_gets_one_line(run, tmp_path):
    code, _, err = run("points", tmp_path)

    assert (code, err.count("\n")) == (2, 1)
    assert "is a folder without config.json, so it holds no model" in err


@pytest.mark.parametrize("command", ["linearity", "permute"])
def test_impossible_output_folder_gets_one_line(run, model_folder, command, tmp_path):
    (tmp_path / "file").write_text("")

    code, _, err = run(command, model_folder, "--tokens", "600", "--quiet", "--out", tmp_path / "file" / "out")

    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be made: Not a directory" in err


def test_hub_retries_are_not_shown(run):
    run("plot", "nowhere")

    assert huggingface_hub.utils.logging.get_verbosity() == huggingface_hub.utils.logging.ERROR


def test_interrupted_command_names_the_file_it_can_resume_from(run, model_folder, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastprobe.reordering.order_runs.OrderRuns.__iter__", interrupted)
    sizes = ("--tokens", "600", "--quiet")

    code, _, err = run("permute", model_folder, *sizes, "--out", tmp_path / "out")
    kept = tmp_path / "out" / "orders.jsonl"
    assert (code, err) == (130, f"fastprobe: interrupted; {kept} is kept: continue with --resume\n")

    code, _, err = run("commutator", model_folder, *sizes, "--out", tmp_path / "other")
    assert (code, err) == (130, "fastprobe: interrupted; nothing was kept\n")


@pytest.mark.parametrize("command", ["linearity", "permute", "commutator", "ablate", "probe", "paper", "points"])
def test_every_command_on_a_model_has_the_options_of_its_source(run, command):
    code, out, _ = run(command, "--help")

    assert code == 0
    assert "Hub name or local folder; by default the demo encoder." in out
    options = ["--dtype", "--device"]
    if command != "points":
        options += ["--text", "--dataset", "--split", "--text-column", "--tokens", "--max-seq-len", "--batch-size"]
    assert all(f"\n  {option} " in out for option in options)


def test_commands_appear_in_the_order_of_their_use(run):
    _, out, _ = run("--help")

    commands = [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines() if line.strip()]
    assert commands == [
        *("linearity", "points", "merge", "permute", "commutator", "ablate"),
        *("probe", "paper", "pretrain", "plot", "bench"),
    ]


def test_json_is_the_only_output_of_points(run, model_folder):
    code, out, err = run("points", model_folder, "--json")

    document = json.loads(out)
    assert (code, err, document["layers"]) == (0, "", 2)
    assert all(row["holds"] for row in document["identities"])
