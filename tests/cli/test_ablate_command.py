"""``ablate`` and ``probe`` as a user types them."""

import json

import pytest
import torch
from transformers import AutoModel, BertConfig, BertForMaskedLM

import fastprobe as fp

SIZES = ("--tokens", "1500", "--max-seq-len", "32", "--batch-size", "8")


@pytest.fixture
def command(run, model_folder, tmp_path):
    """A command on the tiny model, small enough for a test."""
    return lambda name, *arguments: run(name, model_folder, *SIZES, "--out", tmp_path / "out", *arguments)


def test_ablations_are_run_shown_drawn_and_gone_on_with(command, run, tmp_path):
    code, out, err = command("ablate", "--elements", "mlp,attn", "--mode", "zero,linear", "--layers", "forward")

    assert code == 0
    assert [line[:16].strip() for line in out.splitlines()[1:4]] == ["the model itself", "mlp 0 zero", "mlp 0-2 zero"]
    assert max(map(len, out.splitlines())) <= 80
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"scores.json", "scores.csv", "orders.jsonl", "ablation.png"}
    assert "9 rows from" in err
    rows = fp.load(tmp_path / "out").rows
    code, out, _ = command(
        "ablate", "--elements", "mlp,attn", "--mode", "zero,linear", "--layers", "forward", "--resume", "--json"
    )
    assert code == 0
    assert json.loads(out)["rows"] == rows
    assert json.loads(out)["config"]["layer_forwards_run"] == 0
    assert run("plot", tmp_path / "out", "--metric", "cosine")[0] == 0


def test_sets_of_layers_and_a_model_with_a_linear_ffn(command, tmp_path):
    code, out, _ = command(
        "ablate", "--mode", "linear", "--layers", "0-2", "--alpha", "1", "--folds", "0", "--write", tmp_path / "linear"
    )

    assert code == 0
    assert "mlp 0-2 linear" in out
    config = fp.load(tmp_path / "out").config
    assert (config["sets"], config["alpha"]) == (["0-2"], {"mlp.0": 1.0, "mlp.1": 1.0})
    layer = AutoModel.from_pretrained(tmp_path / "linear").encoder.layer[1]
    assert torch.equal(layer.intermediate.dense.weight[:24], torch.eye(24))
    code, out, _ = command("ablate", "--layers", "0", "--layers", "0,1")
    assert code == 0
    assert fp.load(tmp_path / "out").config["sets"] == ["0", "0-2"]


def test_a_language_model_is_ablated_on_masked_tokens(run, model_folder, tmp_path):
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(model_folder)
    BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    for file in model_folder.glob("tokenizer*"):
        (tmp_path / "mlm" / file.name).write_bytes(file.read_bytes())

    modes = "zero,mean,resample,random_init,linear,identity"  # more than there are kinds of dashes with a name
    code, _, _ = run("ablate", tmp_path / "mlm", *SIZES, "--mode", modes, "--out", tmp_path / "out")

    assert code == 0
    assert all(row["delta_loss"] is not None for row in fp.load(tmp_path / "out").rows)


def test_states_are_probed_shown_and_drawn(command, run, tmp_path):
    code, out, err = command("probe", "--orders", "1,0", "--orders", "drops")

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
        (["ablate", "--elements", "ffn_sum"], "'ffn_sum' has no output of its own"),
        (["ablate", "--mode", "off"], "mode: 'off' is not one of zero"),
        (["ablate", "--layers", "some"], "layers: 'some' is not one of each, forward, backward"),
        (["ablate", "--layers", "7"], "there is no layer 7"),
        (["ablate", "--layers", "x-y"], "'x-y' is not a layer or a half-open range"),
        (["ablate", "--alpha", "much"], "--alpha: must be a number, got 'much'"),
        (["ablate", "--metric", "kl"], "--metric: BertModel has no language-model head"),
        (["ablate", "--write", "here"], "--write: needs --elements mlp --mode linear and one set"),
        (["probe", "--tasks", "pos"], "tasks: 'pos' is not one of token"),
        (["probe", "--orders", "5"], "there is no layer 5"),
        (["probe", "--metric", "loss"], "--metric: 'loss' is not one of r2, r2_cv"),
        (["probe", "--score-sequences", "few"], "--score-sequences: must be an integer, got 'few'"),
    ],
)
def test_unusable_arguments_get_one_line(command, arguments, message):
    code, out, err = command(*arguments, "--quiet")

    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
