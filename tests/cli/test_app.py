"""Behaviour of every command: version, errors in one line, exit codes."""

import io
import json
import sys

import huggingface_hub
import pytest
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

import fastprobe as fp
from fastprobe import cli


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
    assert "Hub name or local folder; by default the demo encoder." in " ".join(out.split())
    options = ["--dtype", "--device"]
    if command != "points":
        options += ["--text", "--dataset", "--split", "--text-column", "--tokens", "--max-seq-len", "--batch-size"]
    assert all(f"\n  {option} " in out for option in options)


def test_commands_appear_in_the_order_of_their_use(run):
    _, out, _ = run("--help")

    commands = [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines() if line.strip()]
    assert commands == [
        *("linearity", "points", "merge", "permute", "commutator", "ablate"),
        *("probe", "paper", "pretrain", "plot", "report", "download", "bench"),
    ]


def test_json_is_the_only_output_of_points(run, model_folder):
    code, out, err = run("points", model_folder, "--json")

    document = json.loads(out)
    assert (code, err, document["layers"]) == (0, "", 2)
    assert all(row["holds"] for row in document["identities"])


@pytest.mark.parametrize("command", ["linearity", "permute", "commutator", "ablate", "probe", "points"])
@pytest.mark.parametrize("as_json", [False, True])
def test_a_terminal_without_unicode_gets_the_result(model_folder, tmp_path, monkeypatch, command, as_json):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    sizes = [] if command == "points" else ["--tokens", "600", "--max-seq-len", "32", "--out", str(tmp_path / "ö")]
    monkeypatch.setattr(sys, "argv", ["fastprobe", command, str(model_folder), *sizes, *["--json"] * as_json])

    with pytest.raises(SystemExit) as exit:
        cli.main()

    streams[0].flush()
    out = streams[0].buffer.getvalue().decode("ascii")
    assert exit.value.code == 0
    assert json.loads(out) if as_json else out


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("data.csv", "text\na text\n", "a .csv file is not plain text"),
        ("data.json", '[{"text": "a text"}]', "a .json file is not plain text"),
        ("data.jsonl", r'{"text": "\ud83d"}', "data.jsonl, line 1: character 0 is the lone surrogate"),
        ("data.jsonl", '{"text": null}', "data.jsonl, line 1: no text in column 'text'"),
        ("data.txt", "ꙮ " * 500, "tokenizer: "),
        ("data.txt", "", "text: there are no tokens in it"),
    ],
    ids=["csv", "json", "surrogate", "null", "unknown", "empty"],
)
@pytest.mark.parametrize("command", ["linearity", "permute", "commutator", "ablate", "probe"])
def test_an_unusable_text_gets_one_line(run, model_folder, tmp_path, command, name, content, reason):
    (tmp_path / name).write_text(content, encoding="utf-8")

    code, out, err = run(command, model_folder, "--text", tmp_path / name, "--out", tmp_path / "out", "--quiet")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert reason in err


@pytest.mark.parametrize("command", ["linearity", "permute"])
def test_a_roberta_runs_its_longest_sequence_and_refuses_the_next(run, model_folder, tmp_path, command):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    pad = tokenizer.pad_token_id
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=34, pad_token_id=pad, **size)
    RobertaModel(config).save_pretrained(tmp_path / "roberta")
    tokenizer.save_pretrained(tmp_path / "roberta")
    most = 34 - pad - 1

    def lines(length):
        sizes = ("--tokens", "600", "--max-seq-len", length, "--out", tmp_path / f"out{length}", "--quiet")
        return run(command, tmp_path / "roberta", *sizes)

    assert lines(most)[0] == 0
    code, out, err = lines(34)
    assert (code, out) == (2, "")
    assert err == f"fastprobe: --max-seq-len: must be at most {most}, the positions of this model, got 34\n"
