"""Arguments that no command can use get one line, before anything runs."""

import pytest
from transformers import AutoTokenizer, BertConfig, BertModel

from fastprobe.models.unpadded.encoder import EncoderLayer
from fastprobe.pretraining.corpus import Corpus

SIZES = ("--tokens", "600", "--max-seq-len", "32", "--quiet")


@pytest.fixture
def command(run, model_folder, tmp_path):
    """A command on the tiny model, small enough for a test."""
    return lambda name, *arguments: run(name, model_folder, *SIZES, "--out", tmp_path / "out", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [("linearity", "--alpha", "nan"), ("probe", "--alpha", "inf"), ("ablate", "--mode", "linear", "--alpha", "nan")],
)
def test_the_ridge_penalty_must_be_finite(command, arguments):
    code, out, err = command(*arguments)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "alpha: must be 0 or more and finite, got" in err


@pytest.mark.parametrize("name", ["linearity", "probe", "ablate"])
def test_a_seed_has_64_bits(command, name):
    code, out, err = command(name, "--seed", 2**63, *(["--mode", "resample"] if name == "ablate" else []))

    assert (code, out, err) == (2, "", f"fastprobe: seed: must be a number of 64 bits, got {2**63}\n")


@pytest.mark.parametrize("device", ["meta", "hpu"])
def test_a_device_without_computation_is_refused(command, device):
    code, out, err = command("linearity", "--device", device)

    assert (code, out) == (2, "")
    assert err == f"fastprobe: device: this torch cannot compute on {device!r}; use auto, cpu or cuda\n"


@pytest.mark.parametrize("name", ["linearity", "permute", "commutator", "ablate", "probe"])
def test_an_impossible_output_folder_is_refused_before_a_layer_runs(run, model_folder, name, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(EncoderLayer, "__call__", lambda *_: pytest.fail("a layer ran"))

    code, out, err = run(name, model_folder, *SIZES, "--out", tmp_path / "file")

    assert (code, out) == (2, "")
    assert err == f"fastprobe: out: the folder {tmp_path / 'file'} cannot be made: File exists\n"


def test_an_impossible_folder_for_a_model_is_refused(command, tmp_path):
    (tmp_path / "file").write_text("")

    code, out, err = command("ablate", "--mode", "linear", "--layers", "1", "--write", tmp_path / "file")

    assert (code, out) == (2, "")
    assert err == f"fastprobe: out: the folder {tmp_path / 'file'} cannot be made: File exists\n"


def test_an_impossible_folder_for_a_training_is_refused_before_a_text_is_read(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Corpus, "read", lambda *_, **__: pytest.fail("a text was read"))

    code, out, err = run("pretrain", "--steps", "2", "--quiet", "--out", tmp_path / "file")

    assert (code, out) == (2, "")
    assert err == f"fastprobe: out: the folder {tmp_path / 'file'} cannot be made: File exists\n"


def test_a_column_without_numbers_is_not_drawn(command, run, tmp_path):
    command("permute")

    code, out, err = run("plot", tmp_path / "out", "--metric", "name")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "metric: no row has 'name'; the rows have cosine" in err


def test_a_tokenizer_of_another_model_is_refused(run, model_folder, tmp_path):
    folder = tmp_path / "small"
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=1200, **size)).save_pretrained(folder)

    code, out, err = run("linearity", folder, *SIZES, "--out", tmp_path / "out")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "but its embedding has 1,200 rows; the tokenizer belongs to another model" in err
