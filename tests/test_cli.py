"""The commands as a user types them: what they write, what they print, and one line for whatever is wrong."""

import json
import sys

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel

import fastprobe as fp
from fastprobe import cli
from fastprobe.models.encoder import EncoderLayer
from fastprobe.text import demo_model_path, demo_text


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny random encoder with a real tokenizer, as a folder that Transformers loads."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capfd):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastprobe", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capfd.readouterr()
        return exit.value.code, out, err

    return run


@pytest.fixture
def scan(run, model_folder, tmp_path):
    """``fastprobe linearity`` of the tiny model, small enough for a test."""

    def scan(*arguments, out=tmp_path / "out"):
        sizes = ("--tokens", "1500", "--max-seq-len", "32", "--batch-size", "8", "--out", out)
        return run("linearity", model_folder, *sizes, *arguments)

    return scan


def rows_of(folder):
    return json.loads((folder / "scores.json").read_text())["rows"]


def test_a_scan_writes_its_files_and_prints_its_table(scan, tmp_path):
    code, out, err = scan()

    assert code == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"scores.json", "scores.csv", "moments.safetensors", "linearity.png"}
    assert sum(line.startswith("mlp_act") for line in out.splitlines()) == 2
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    for part in ("forward", "moments", "solve", "score"):
        assert f"{part} " in err.splitlines()[-1]
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 1 + 20


def test_json_is_the_only_thing_on_stdout(scan, tmp_path):
    code, out, err = scan("--json", "--quiet")

    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "out" / "scores.json").read_text())
    assert err == ""


def test_a_saved_scan_loads_and_plots(scan, run, tmp_path):
    scan("--spans", "all")

    loaded = fp.load(tmp_path / "out")
    code, _, _ = run("plot", tmp_path / "out", "--metric", "cosine")

    assert loaded.matrix("r2").shape == (10, 2)
    assert loaded.matrix("r2", spans=True).shape == (2, 2)
    assert len(loaded.to_pandas()) == 23
    assert loaded.top(1, "r2")[0]["element"] == "attn_proj"
    assert code == 0
    assert (tmp_path / "out" / "cosine.png").read_bytes()[:4] == b"\x89PNG"


def test_points_lists_the_identities(run, model_folder):
    code, out, _ = run("points", model_folder)

    assert code == 0
    assert out.count("holds") == 2 * 4 + 1
    assert "norm(attn_out + resid_pre) = resid_mid" in out


def interrupt_at(monkeypatch, call):
    """Make the ``call``-th pass through an FFN of the runner raise KeyboardInterrupt."""
    plain, calls = EncoderLayer.ffn, []

    def ffn(*args):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(EncoderLayer, "ffn", ffn)


def test_a_resumed_scan_equals_an_uninterrupted_one(scan, tmp_path, monkeypatch):
    assert "there is nothing in" in scan("--resume", out=tmp_path / "whole")[2]
    with monkeypatch.context() as patch:
        interrupt_at(patch, call=8)  # the check of the runner makes two, each batch two more

        code, _, err = scan(out=tmp_path / "parts")

    assert code == 130
    assert "--resume" in err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["moments.safetensors"]
    code, _, _ = scan("--resume", out=tmp_path / "parts")
    assert code == 0
    for whole, parts in zip(rows_of(tmp_path / "whole"), rows_of(tmp_path / "parts"), strict=True):
        assert whole.keys() == parts.keys()
        for column, value in whole.items():
            assert parts[column] == (pytest.approx(value, abs=1e-12) if isinstance(value, float) else value), column


def test_resuming_another_scan_is_refused(scan, tmp_path):
    scan()
    before = (tmp_path / "out" / "moments.safetensors").read_bytes()

    code, _, err = scan("--resume", "--folds", "3")

    assert code == 2
    assert "folds=5, this one has folds=3" in err
    assert (tmp_path / "out" / "moments.safetensors").read_bytes() == before


def test_merged_parts_score_as_the_whole(scan, run, tmp_path):
    topics = list(demo_text().values())[:4]
    for name, texts in {"a": topics[:2], "b": topics[2:], "ab": topics}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        scan("--text", tmp_path / f"{name}.jsonl", "--tokens", "1M", "--folds", "0", out=tmp_path / name)

    code, _, _ = run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "merged")

    assert code == 0
    for merged, whole in zip(rows_of(tmp_path / "merged"), rows_of(tmp_path / "ab"), strict=True):
        assert merged["tokens"] == whole["tokens"]
        assert merged["r2"] == pytest.approx(whole["r2"], abs=1e-6)
        assert merged["cosine"] is None


def test_scans_of_different_options_do_not_merge(scan, run, tmp_path):
    scan("--layers", "0", out=tmp_path / "a")
    scan("--layers", "1", out=tmp_path / "b")

    code, _, err = run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "merged")

    assert (code, err.count("\n")) == (2, 1)
    assert "differ in fits" in err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--elements", "fnn"), "unknown element 'fnn'"),
        (("--layers", "0-7"), "no layer 2; the model has layers 0 to 1"),
        (("--layers", "first"), "'first' is not a layer"),
        (("--tokens", "many"), "'many' is not a number of tokens like"),
        (("--tokens", "0"), "tokens: must be 1 or more"),
        (("--max-seq-len", "2"), "must be more than the 2 special tokens"),
        (("--batch-size", "big"), "--batch-size: 'big' is not a number"),
        (("--dtype", "int8"), "dtype: 'int8' is not one of"),
        (("--device", "gpu"), "device: 'gpu' is not a device"),
        (("--backend", "cuda"), "backend 'cuda': "),
        (("--backend", "abacus"), "'abacus' is not one of auto, cuda"),
        (("--text", "nowhere.txt"), "nowhere.txt is not a file"),
        (("--text", "EMPTY"), "no tokens in it"),
        (("--text", "LATIN"), "not UTF-8 text"),
        (("--text", "BROKEN"), "line 2: not JSON"),
        (("--text", "COLUMN"), "no text in column 'text' (it has body)"),
    ],
)
def test_unusable_arguments_get_one_line(scan, tmp_path, arguments, message):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1") * 9)
    (tmp_path / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "column.jsonl").write_text('{"body": "fine"}\n')
    files = {"EMPTY": "empty.txt", "LATIN": "latin.txt", "BROKEN": "broken.jsonl", "COLUMN": "column.jsonl"}

    code, out, err = scan(*(tmp_path / files[a] if a in files else a for a in arguments), "--quiet")

    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.fixture
def permute(run, model_folder, tmp_path):
    """``fastprobe permute`` of the tiny model."""

    def permute(*arguments, out=tmp_path / "out"):
        sizes = ("--tokens", "600", "--max-seq-len", "32", "--batch-size", "8", "--out", out)
        return run("permute", model_folder, *sizes, *arguments)

    return permute


def test_orders_are_run_shown_drawn_and_gone_on_with(permute, run, tmp_path):
    code, out, err = permute("--orders", "swaps", "--orders", "drops")

    assert code == 0
    names = ["identity", "swap 0 1", "drop 0", "drop 1"]
    assert all(map(str.startswith, out.splitlines()[1:], names))
    assert "4 rows from 4 layer runs a batch; one by one they would take 6" in err
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"scores.json", "scores.csv", "orders.jsonl", "commutativity.png"}
    before = rows_of(tmp_path / "out")
    code, _, _ = permute("--orders", "swaps", "--orders", "drops", "--resume")
    assert (code, rows_of(tmp_path / "out")) == (0, before)
    assert run("plot", tmp_path / "out", "--metric", "cosine")[0] == 0


def test_a_language_model_gets_masked_tokens_to_predict(run, model_folder, tmp_path):
    folder = tmp_path / "mlm"
    config = BertConfig.from_pretrained(model_folder)
    BertForMaskedLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    sizes = ("--tokens", "600", "--max-seq-len", "32", "--batch-size", "8", "--json", "--quiet")

    code, out, err = run("permute", folder, *sizes, "--out", tmp_path / "a")
    _, again, _ = run("permute", folder, *sizes, "--out", tmp_path / "b")

    assert (code, err) == (0, "")
    rows = json.loads(out)["rows"]
    assert rows == json.loads(again)["rows"]
    assert 9 < rows[0]["loss"] < 12  # of a random model with 30,522 tokens
    assert rows[0]["top1_agreement"] == 1


def test_skips_are_scaled_and_states_on_the_way_compared(permute, run, tmp_path):
    plain, scaled = (permute("--depths", "--json", "--quiet", *more) for more in ((), ("--skip-scale", "0=0.5,1=0")))

    plain, scaled = (json.loads(out) for code, out, err in (plain, scaled))
    assert len(plain["rows"][1]["relative_l2_by_depth"]) == 2
    assert plain["rows"][1]["relative_l2"] != scaled["rows"][1]["relative_l2"]
    assert scaled["config"]["skip_scale"] == "0=0.5,1=0"
    assert run("plot", tmp_path / "out", "--metric", "relative_l2_by_depth")[0] == 0


def test_commutators_are_shown_and_drawn(run, model_folder, tmp_path):
    code, out, _ = run("commutator", model_folder, "--tokens", "600", "--out", tmp_path / "out")

    assert code == 0
    assert out.splitlines()[1].startswith("0 1 ")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scores.json", "scores.csv", "commutator.png"}


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ("0,5", "there is no layer 5; the model has 0 to 1"),
        ("0,,1", "'' is no layer"),
        ("spirals", "'spirals' is not one of swaps, adjacent"),
        ("drops:wide=2", "'wide=2' is no option; drops takes width=..."),
        ("drops:width=two", "width must be a number, got 'two'"),
        ("drops:width=2", "width: must be at least 1 and at most 1 for 2 layers"),
        ("painters:start=1", "needs mode=..."),
        ("paper:swap", "'swap' is not one of swaps, triples"),
        ("file:nowhere.txt", "nowhere.txt cannot be read"),
    ],
)
def test_orders_that_make_no_sense_get_one_line(permute, orders, message, tmp_path):
    code, out, err = permute("--orders", orders, "--quiet")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "loss"), "BertModel has no language-model head and so no loss; name a model that was saved with"),
        (("--metric", "cosine_by_depth"), "--metric: 'cosine_by_depth' is not one of cosine, relative_l2"),
        (("--skip-scale", "none"), "--skip-scale: 'none' is neither a number nor layer=number"),
        (("--skip-scale", "7=0"), "there is no layer 7; the model has 0 to 1"),
        (("--skip-scale", "0", "--skip-parts", "mlp"), "'mlp' is not one of attention, ffn"),
    ],
)
def test_what_permute_cannot_do_gets_one_line(permute, arguments, message, tmp_path):
    code, out, err = permute(*arguments, "--quiet")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_model_that_is_not_there_gets_one_line(run, tmp_path):
    code, _, err = run("points", tmp_path / "nothing")

    assert (code, err.count("\n")) == (2, 1)
    assert "could not be loaded" in err


def test_a_full_disk_leaves_what_was_there(scan, tmp_path, monkeypatch):
    scan()
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("fastprobe.moments.save_file", full)
    code, _, err = scan("--tokens", "500")

    assert code == 2
    assert "moments.safetensors: No space left on device; no file is half written" in err
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


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
    assert (tmp_path / "model" / "pretraining.png").read_bytes()[:4] == b"\x89PNG"
    options = ("--tokens", "800", "--max-seq-len", "32", "-o", tmp_path / "out")
    for command in ("linearity", "permute", "commutator"):
        assert run(command, tmp_path / "model", *options)[0] == 0
    assert run("points", tmp_path / "model")[0] == 0
    code, _, err = run("permute", tmp_path / "model", "-o", tmp_path / "out")
    assert (code, err) == (2, "fastprobe: --max-seq-len: this model has 32 positions, got 128\n")
    assert run("plot", tmp_path / "model", "--metric", "loss")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "albert"], "variant: 'albert' is not one of bert"),
        (["--trainer", "bf16"], "--trainer: 'bf16' is not NAME=VALUE"),
        (["--resume"], "there are no checkpoints in"),
        (["--text", "nowhere.txt"], "--text: nowhere.txt is not a file"),
    ],
)
def test_a_training_that_cannot_be_is_one_line(run, tmp_path, arguments, message):
    code, _, err = run("pretrain", *arguments, "-o", tmp_path / "model")

    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_an_interrupted_command_says_what_is_kept(permute, run, model_folder, tmp_path, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastprobe.runs.OrderRuns.__iter__", interrupted)

    code, _, err = permute("--quiet")
    assert (code, err) == (
        130,
        f"fastprobe: interrupted; {tmp_path / 'out' / 'orders.jsonl'} is kept: go on with --resume\n",
    )

    code, _, err = run("commutator", model_folder, "--tokens", "600", "--quiet", "--out", tmp_path / "other")
    assert (code, err) == (130, "fastprobe: interrupted; nothing was kept\n")


@pytest.mark.parametrize("command", ["linearity", "permute"])
def test_a_folder_that_cannot_be_made_gets_one_line(run, model_folder, command, tmp_path):
    (tmp_path / "file").write_text("")

    code, _, err = run(command, model_folder, "--tokens", "600", "--quiet", "--out", tmp_path / "file" / "out")

    assert (code, err.count("\n")) == (2, 1)
    assert "cannot be made: Not a directory" in err


def test_the_version_is_printed(run):
    assert run("--version") == (0, f"{fp.__version__}\n", "")


def test_a_folder_without_a_model_gets_one_line(run, tmp_path):
    code, _, err = run("points", tmp_path)

    assert (code, err.count("\n")) == (2, 1)
    assert "has no config.json in it, so it is not the folder of a model" in err
