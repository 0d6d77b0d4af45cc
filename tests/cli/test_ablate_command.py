"""``fastprobe ablate``."""

import json

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, LlamaConfig, LlamaModel

import fastprobe as fp
from fastprobe.data.demo import demo_model_path

SIZES = ("--tokens", "1500", "--max-seq-len", "32", "--batch-size", "8")


@pytest.fixture
def ablate(run, model_folder, tmp_path):
    """``fastprobe ablate`` of the tiny model."""
    return lambda *arguments: run("ablate", model_folder, *SIZES, "--out", tmp_path / "out", *arguments)


def test_ablations_are_run_shown_drawn_and_resumed(ablate, run, tmp_path):
    code, out, err = ablate("--elements", "mlp,attn", "--mode", "zero,linear", "--layers", "forward")

    assert code == 0
    assert [line[:16].strip() for line in out.splitlines()[1:4]] == ["baseline", "mlp 0 zero", "mlp 0-2 zero"]
    assert max(map(len, out.splitlines())) <= 80
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"scores.json", "scores.csv", "orders.jsonl", "ablation.png"}
    assert "9 rows from" in err
    rows = fp.load(tmp_path / "out").rows
    code, out, _ = ablate(
        "--elements", "mlp,attn", "--mode", "zero,linear", "--layers", "forward", "--resume", "--json"
    )
    assert code == 0
    assert json.loads(out)["rows"] == rows
    assert json.loads(out)["config"]["layer_forwards_run"] == 0
    assert run("plot", tmp_path / "out", "--metric", "cosine")[0] == 0


def test_sets_of_layers_are_ablated_and_a_linear_model_is_written(ablate, tmp_path):
    code, out, _ = ablate(
        "--mode", "linear", "--layers", "0-2", "--alpha", "1", "--folds", "0", "--write", tmp_path / "linear"
    )

    assert code == 0
    assert "mlp 0-2 linear" in out
    config = fp.load(tmp_path / "out").config
    assert (config["sets"], config["alpha"]) == (["0-2"], {"mlp.0": 1.0, "mlp.1": 1.0})
    layer = AutoModel.from_pretrained(tmp_path / "linear").encoder.layer[1]
    assert torch.equal(layer.intermediate.dense.weight[:24], torch.eye(24))
    code, out, _ = ablate("--layers", "0", "--layers", "0,1", "--overwrite")
    assert code == 0
    assert fp.load(tmp_path / "out").config["sets"] == ["0", "0-2"]


def test_a_language_model_is_ablated_on_masked_tokens(run, model_folder, tmp_path):
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(model_folder)
    BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    for file in model_folder.glob("tokenizer*"):
        (tmp_path / "mlm" / file.name).write_bytes(file.read_bytes())

    modes = "zero,mean,resample,random_init,linear,identity"  # more modes than matplotlib has named line styles
    code, _, _ = run("ablate", tmp_path / "mlm", *SIZES, "--mode", modes, "--out", tmp_path / "out")

    assert code == 0
    assert all(row["delta_loss"] is not None for row in fp.load(tmp_path / "out").rows)


def test_a_model_that_takes_no_linear_mlp_is_refused_before_it_reads_a_text(run, tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    LlamaModel(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(tmp_path / "gated")
    tokenizer.save_pretrained(tmp_path / "gated")
    monkeypatch.setattr("fastprobe.data.token_batches.TokenBatches.__iter__", lambda _: pytest.fail("it read the text"))

    code, out, err = run(
        *("ablate", tmp_path / "gated", *SIZES, "--mode", "linear", "--layers", "0-2"),
        *("--write", tmp_path / "linear", "--out", tmp_path / "out", "--quiet"),
    )

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "its FFN has a gate" in err
    assert not (tmp_path / "out").exists()


def test_a_model_is_not_written_over_files_or_over_the_model_that_is_read(ablate, model_folder, tmp_path):
    linear = ("--mode", "linear", "--layers", "0", "--quiet", "--write")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    before = {path: path.read_bytes() for path in model_folder.iterdir()}

    _, _, other = ablate(*linear, tmp_path / "other")
    _, _, read = ablate(*linear, model_folder, "--overwrite")

    assert (
        other == f"fastprobe: --write: {tmp_path / 'other'} holds files; name another folder, or replace its model "
        "with --overwrite\n"
    )
    assert read == f"fastprobe: --write: {model_folder} holds the model that is read; name another folder\n"
    assert {path: path.read_bytes() for path in model_folder.iterdir()} == before
    assert ablate(*linear, tmp_path / "other", "--overwrite")[0] == 0
    assert AutoModel.from_pretrained(tmp_path / "other").config.hidden_size == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--elements", "ffn_sum"], "'ffn_sum' has no output of its own"),
        (["--mode", "off"], "mode: 'off' is not one of zero"),
        (["--layers", "some"], "layers: 'some' is not one of each, forward, backward"),
        (["--layers", "7"], "there is no layer 7"),
        (["--layers", "x-y"], "'x-y' is not a layer or a half-open range"),
        (["--alpha", "much"], "--alpha: must be a number, got 'much'"),
        (["--metric", "kl"], "--metric: BertModel has no language-model head"),
        (["--write", "here"], "--write: needs --elements mlp --mode linear and one set"),
    ],
)
def test_unusable_ablate_arguments_get_one_line(ablate, arguments, message):
    code, out, err = ablate(*arguments, "--quiet")

    assert code == 2
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
