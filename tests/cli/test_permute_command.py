"""``fastprobe permute``."""

import json

import pytest
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

import fastprobe as fp


@pytest.fixture
def permute(run, model_folder, tmp_path):
    """``fastprobe permute`` of the tiny model."""

    def permute(*arguments, out=tmp_path / "out"):
        sizes = ("--tokens", "600", "--max-seq-len", "32", "--batch-size", "8", "--out", out)
        return run("permute", model_folder, *sizes, *arguments)

    return permute


def test_orders_are_run_shown_drawn_and_resumed(permute, run, tmp_path):
    code, out, err = permute("--orders", "swaps", "--orders", "drops")

    assert code == 0
    names = ["baseline", "swap 0 1", "drop 0", "drop 1"]
    assert all(map(str.startswith, out.splitlines()[1:], names))
    assert "4 rows from 4 layer runs a batch; one by one they would take 6" in err
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"scores.json", "scores.csv", "orders.jsonl", "commutativity.png"}
    before = fp.load(tmp_path / "out").rows
    code, _, _ = permute("--orders", "swaps", "--orders", "drops", "--resume")
    assert (code, fp.load(tmp_path / "out").rows) == (0, before)
    assert run("plot", tmp_path / "out", "--metric", "cosine")[0] == 0


def test_a_language_model_predicts_masked_tokens(run, model_folder, tmp_path):
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


def test_skip_connections_are_scaled_and_states_compared_by_depth(permute, run, tmp_path):
    plain, scaled = (
        permute("--depths", "--json", "--quiet", "--overwrite", *more) for more in ((), ("--skip-scale", "0=0.5,1=0"))
    )

    plain, scaled = (json.loads(out) for code, out, err in (plain, scaled))
    assert len(plain["rows"][1]["relative_l2_by_depth"]) == 2
    assert plain["rows"][1]["relative_l2"] != scaled["rows"][1]["relative_l2"]
    assert scaled["config"]["skip_scale"] == "0=0.5,1=0"
    assert run("plot", tmp_path / "out", "--metric", "relative_l2_by_depth")[0] == 0


def test_depths_have_a_second_table(permute):
    (_, plain, _), (_, deep, _) = permute("--quiet"), permute("--depths", "--quiet", "--overwrite")

    assert "after step" not in plain
    assert deep.startswith(plain)
    head, baseline, swap = deep.removeprefix(plain).strip().splitlines()
    assert head.split() == ["rel", "l2", "after", "step", "1", "2"]
    assert baseline.split() == ["baseline", "0.0000", "0.0000"]
    assert swap.split()[-1] == plain.splitlines()[2].split()[-2]  # after the last step: the final states


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
def test_unusable_orders_get_one_line(permute, orders, message, tmp_path):
    code, out, err = permute("--orders", orders, "--quiet")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "loss"), "BertModel has no language-model head and so no loss; name a model that was saved with"),
        (("--metric", "cosine_by_depth"), "--metric: 'cosine_by_depth' is not one of cosine, relative_l2"),
        (("--skip-scale", "none"), "--skip-scale: must be a number or LAYER=NUMBER,..., got 'none'"),
        (("--skip-scale", "7=0"), "there is no layer 7; the model has 0 to 1"),
        (("--skip-scale", "0", "--skip-parts", "mlp"), "'mlp' is not one of attention, ffn"),
    ],
)
def test_unusable_permute_arguments_get_one_line(permute, arguments, message, tmp_path):
    code, out, err = permute(*arguments, "--quiet")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
