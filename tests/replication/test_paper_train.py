"""``fastprobe paper --train`` end to end at toy size: trained once, gone on with, and everything is on the page."""

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
from fastprobe.pretraining import family
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
    """The folder that the command fills, and the claims that it prints as JSON; not to be written to."""
    folder, printed = tmp_path_factory.mktemp("paper") / "out", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["fastprobe", *map(str, arguments(text, folder, "--quiet", "--json"))])
        with pytest.raises(SystemExit) as exit:
            cli.main()
    assert exit.value.code == 0
    return folder, json.loads(printed.getvalue())


def test_the_page_has_the_variants_beside_the_analyses_of_bert(written):
    folder, claims = written
    text = visible((folder / "paper.html").read_text())
    models = {name: fp.load(folder / "models" / name) for name in VARIANTS}

    assert {claim["section"] for claim in claims} == {*(section.name for section in SECTIONS), "variants", "unskipped"}
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


def test_bert_is_asked_about_text_that_no_variant_was_trained_on(written, text):
    folder, _ = written
    _, tokenizer = load_model(str(folder / "models" / "bert"))
    corpus = fp.pretraining.Corpus.read(
        text, tokenizer, vocab_size=300, max_seq_len=24, tokens=None, text_column="text", seed=0
    )
    held_out = iter(torch.where(corpus.labels == -100, corpus.held_out, corpus.labels).tolist())

    documents = [json.loads(line)["text"] for line in (folder / "models" / "held-out.jsonl").read_text().splitlines()]

    assert 0.9 * len(corpus.held_out) < len(documents) <= len(corpus.held_out)  # some are one long word
    for document in documents:  # the same tokens as in the next sequence, or the one after it
        ids = tokenizer(document, add_special_tokens=False)["input_ids"]
        assert any(" ".join(map(str, ids)) in " ".join(map(str, sequence)) for sequence in held_out)
    assert fp.load(folder / "swaps").config["text"][0].startswith(str(folder / "models" / "held-out.jsonl"))


def test_commands_on_the_page_train_and_ask_the_same(written, run, tmp_path):
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


def test_resume_takes_models_and_results_over_and_trains_what_is_missing(written, run, text, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(written[0], folder)
    shutil.rmtree(folder / "models" / "no-ffn")
    for name in [analysis.name for section in SECTIONS for analysis in section.analyses]:
        shutil.rmtree(folder / name)  # their rows would name the other folder as that of the model
    for name in ("swaps-no-skip:1", "commutators-no-skip:1"):
        shutil.rmtree(folder / name)
    kept = (folder / "models" / "bert" / "scores.json").stat().st_mtime_ns

    code, _, err = run(*arguments(text, folder, "--resume"))

    assert code == 0
    assert "1/3 taking bert" in err
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
    assert re.fullmatch(r"fastprobe: out: .*models holds models; go on with them with --resume.*\n", err)


def test_a_variant_that_diverges_is_on_the_page(run, text, tmp_path, monkeypatch):
    plain = family.pretrain

    def pretrain(*args, variant, **options):
        if variant == "no-skip:1":
            raise NumericalError("the held-out loss is nan at step 2")
        return plain(*args, variant=variant, **options)

    monkeypatch.setattr(family, "pretrain", pretrain)

    code, out, err = run(*arguments(text, tmp_path / "out", "--resume", "--json"))

    assert code == 0
    assert "to go on with; this is a first run" in err
    found = {row["claim"]: (row["holds"], row["found"]) for row in json.loads(out)}
    reason = "no-skip:1 was not trained to its end: the held-out loss is nan at step 2."
    assert found["no-skip:1 learns more than the frequencies of tokens."] == (False, reason)
    assert "<td>no-skip:1</td>" in (tmp_path / "out" / "paper.html").read_text().replace("> <", "><")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["some-model", "--train"], "--train: trains the models that it asks, so that 'some-model' has no place"),
        (["--steps", "9"], "--steps: goes with --train"),
        (["--hidden-size", "9"], "--hidden-size: goes with --train"),
        (["--train", "--variant", "albert"], "variant: 'albert' is not one of"),
        (["--train", "--trainer", "bf16"], "--trainer: 'bf16' is not NAME=VALUE"),
        (["--train", "--text", "nowhere.txt"], "--text: nowhere.txt is not a file"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(run, tmp_path, words, message):
    code, out, err = run("paper", *words, "--quiet", "--out", tmp_path / "out")

    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_one_model_alone_is_compared_with_none():
    assert comparisons(()) == ()
