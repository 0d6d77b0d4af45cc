"""``fastprobe paper --train`` end to end with toy models: training, resuming and the page."""

import contextlib
import html
import io
import json
import re
import shlex
import shutil
import sys

import pytest
import torch

import fastprobe as fp
from fastprobe import cli
from fastprobe.data.demo import demo_text
from fastprobe.errors import NumericalError
from fastprobe.models.loading import load_model
from fastprobe.pretraining import variant_set
from fastprobe.replication.sections import SECTIONS, comparisons
from tests.replication.test_paper import visible

VARIANTS = ["bert", "no-ffn", "no-skip:1"]
SIZES = ["--steps", "4", "--layers", "3", "--hidden-size", "16", "--vocab-size", "300", "--max-seq-len", "24"]
SIZES += ["--train-batch-size", "4", "--learning-rate", "0.005", "--trainer", "lr_scheduler_type=constant"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "some text.txt"
    path.write_text("\n".join(list(demo_text().values())[:12]))
    return path


def arguments(text, folder, *more):
    chosen = [word for name in VARIANTS for word in ("--variant", name)]
    return ["paper", "--train", *chosen, *SIZES, "--text", text, "--tokens", "300", "--out", folder, *more]


@pytest.fixture(scope="module")
def written(text, tmp_path_factory):
    """Run the command. Return its folder, which tests must not change, and the claims it prints as JSON."""
    folder, printed = tmp_path_factory.mktemp("paper") / "out", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["fastprobe", *map(str, arguments(text, folder, "--quiet", "--json"))])
        with pytest.raises(SystemExit) as exit:
            cli.main()
    assert exit.value.code == 0
    return folder, json.loads(printed.getvalue())


def test_the_page_has_the_variants_and_the_analyses_of_bert(written):
    folder, claims = written
    text = visible((folder / "paper.html").read_text())
    models = {name: fp.load(folder / "models" / name) for name in VARIANTS}

    assert {claim["section"] for claim in claims} == {
        *(section.name for section in SECTIONS),
        "variants",
        "trained-without-skips",
    }
    for name, model in models.items():
        last, costs = model.rows[-1], model.config["costs"]
        numbers = [f"{last['held_out_loss']:.3f}", f"{last['held_out_loss_se']:.3f}"]
        assert re.search(
            f"<tr><td>{name}</td><td>{numbers[0]}</td><td>{numbers[1]}</td>".replace("> <", "><"),
            text.replace("> <", "><"),
        )
        assert f"<td>{costs['parameters']:,}</td>" in text
    losses = {claim["claim"]: claim["found"] for claim in claims}
    loss, unigram = (models["bert"].config[key] for key in ("held_out_loss", "unigram_loss"))
    assert f"{loss:.3f}" in losses["bert learns more than the frequencies of tokens."]
    assert f"unigram {unigram:.3f}" in losses["bert learns more than the frequencies of tokens."]
    assert fp.load(folder / "swaps").config["model"] == str(folder / "models" / "bert")
    assert fp.load(folder / "swaps-no-skip:1").config["model"] == str(folder / "models" / "no-skip:1")


def test_bert_is_analysed_on_text_that_no_variant_was_trained_on(written, text):
    folder, _ = written
    _, tokenizer = load_model(str(folder / "models" / "bert"))
    corpus = fp.pretraining.Corpus.read(
        text, tokenizer, vocab_size=300, max_seq_len=24, tokens=None, text_column="text", seed=0
    )
    held_out = iter(torch.where(corpus.labels == -100, corpus.held_out, corpus.labels).tolist())

    documents = [json.loads(line)["text"] for line in (folder / "models" / "held-out.jsonl").read_text().splitlines()]

    # A sequence of one long word gives no text.
    assert 0.9 * len(corpus.held_out) < len(documents) <= len(corpus.held_out)
    for document in documents:  # its tokens are those of a later sequence
        ids = tokenizer(document, add_special_tokens=False)["input_ids"]
        assert any(" ".join(map(str, ids)) in " ".join(map(str, sequence)) for sequence in held_out)
    assert fp.load(folder / "swaps").config["text"][0].startswith(str(folder / "models" / "held-out.jsonl"))


def test_commands_on_the_page_repeat_the_training_and_the_analyses(written, run, tmp_path):
    folder, _ = written
    page = html.unescape((folder / "paper.html").read_text())
    commands = [
        shlex.split(line) for block in re.findall(r"<pre>(.*?)</pre>", page, re.S) for line in block.splitlines()
    ]
    by_folder = {command[-1]: command for command in commands if command[1] == "pretrain"}
    assert set(by_folder) == {str(folder / "models" / name) for name in VARIANTS}

    command = by_folder[str(folder / "models" / "no-ffn")]
    assert run(*command[1:-1], tmp_path / "again", "--quiet")[0] == 0
    assert fp.load(tmp_path / "again").rows == fp.load(folder / "models" / "no-ffn").rows

    [command] = [c for c in commands if c[1] == "permute" and "no-skip:1" in c[2]]
    assert run(*command[1:], "--quiet", "--out", tmp_path / "swaps")[0] == 0
    rows = [fp.load(path).to_pandas().round(6) for path in (tmp_path / "swaps", folder / "swaps-no-skip:1")]
    assert rows[0].equals(rows[1])


def test_resume_loads_models_and_results_and_trains_missing_models(written, run, text, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(written[0], folder)
    shutil.rmtree(folder / "models" / "no-ffn")
    for name in [analysis.name for section in SECTIONS for analysis in section.analyses]:
        shutil.rmtree(folder / name)  # their configuration names the model in the other folder
    for name in ("swaps-no-skip:1", "commutators-no-skip:1"):
        shutil.rmtree(folder / name)
    kept = (folder / "models" / "bert" / "scores.json").stat().st_mtime_ns

    code, _, err = run(*arguments(text, folder, "--resume"))

    assert code == 0
    assert "1/3 loading bert" in err
    assert "2/3 training no-ffn" in err
    assert (folder / "models" / "bert" / "scores.json").stat().st_mtime_ns == kept
    assert fp.load(folder / "models" / "no-ffn").rows == fp.load(written[0] / "models" / "no-ffn").rows
    before = (folder / "paper.html").read_bytes()
    assert run(*arguments(text, folder, "--resume", "--quiet"))[0] == 0
    assert (folder / "paper.html").read_bytes() == before

    code, out, err = run(*arguments(text, folder, "--resume", "--quiet", "--steps", "5"))
    assert (code, out) == (2, "")
    assert re.fullmatch(r"fastprobe: --resume: .*bert is of a run with another steps; start anew .*\n", err)
    code, out, err = run(*arguments(text, folder, "--quiet"))
    assert (code, out) == (2, "")
    assert re.fullmatch(
        r"fastprobe: out: .*out holds paper.html and \d+ more files of an earlier run; continue it with .*\n", err
    )


def test_a_failed_training_is_reported_on_the_page(run, text, tmp_path, monkeypatch):
    plain = variant_set.pretrain

    def pretrain(*args, variant, **options):
        if variant == "no-skip:1":
            raise NumericalError("the held-out loss is nan at step 2")
        return plain(*args, variant=variant, **options)

    monkeypatch.setattr(variant_set, "pretrain", pretrain)

    code, out, err = run(*arguments(text, tmp_path / "out", "--resume", "--json"))

    assert code == 0
    assert "to resume from; this is a first run" in err
    found = {row["claim"]: (row["holds"], row["found"]) for row in json.loads(out)}
    reason = "The training of no-skip:1 failed: the held-out loss is nan at step 2."
    assert found["no-skip:1 learns more than the frequencies of tokens."] == (False, reason)
    assert "<td>no-skip:1</td>" in (tmp_path / "out" / "paper.html").read_text().replace("> <", "><")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["some-model", "--train"], "--train: takes no model, because it trains its own; got 'some-model'"),
        (["--steps", "9"], "--steps: needs --train"),
        (["--hidden-size", "9"], "--hidden-size: needs --train"),
        (["--train", "--variant", "albert"], "variant: 'albert' is not one of"),
        (["--train", "--trainer", "bf16"], "--trainer: must be NAME=VALUE, like bf16=true, got 'bf16'"),
        (["--train", "--text", "nowhere.txt"], "--text: nowhere.txt is not a file"),
    ],
)
def test_invalid_input_prints_one_line_and_writes_nothing(run, tmp_path, words, message):
    code, out, err = run("paper", *words, "--quiet", "--out", tmp_path / "out")

    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_without_variants_there_are_no_comparisons():
    assert comparisons(()) == ()
