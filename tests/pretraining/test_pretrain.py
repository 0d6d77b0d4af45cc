"""End-to-end training of toy models: losses fall, runs are reproducible, and the saved models load."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertForMaskedLM
from transformers.utils import logging

import fastprobe as fp
from fastprobe.data.demo import demo_text
from fastprobe.errors import InputError, NumericalError
from fastprobe.models.bert_variants import BertVariantForMaskedLM
from fastprobe.models.loading import load_model
from fastprobe.models.resolve import resolve
from fastprobe.pretraining import run
from fastprobe.pretraining.variants import VARIANTS

TEXT = list(demo_text().values())[:12]
TOY = {"layers": 2, "hidden_size": 32, "vocab_size": 400, "max_seq_len": 32, "batch_size": 8, "learning_rate": 5e-3}
NAMES = ["no-skip:1" if name == "no-skip" else name for name in VARIANTS]

logging.set_verbosity_error()
logging.disable_progress_bar()


def toy(out, **options):
    return fp.pretrain(TEXT, out, **(TOY | {"steps": 20, "progress": False} | options))


def losses(result):
    return [(row["step"], row["loss"], row["held_out_loss"]) for row in result.rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train every variant for a second. Map its name to its folder and result."""
    folder = tmp_path_factory.mktemp("variants")
    return {
        name: (folder / name.replace(":", "-"), toy(folder / name.replace(":", "-"), variant=name)) for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_losses_of_every_variant_fall(trained, name):
    _, result = trained[name]

    first, last = result.rows[0], result.rows[-1]
    assert (first["step"], first["loss"], last["step"], last["tokens"]) == (0, None, 20, 20 * 8 * 32)
    assert last["held_out_loss"] < first["held_out_loss"] - 4 * (first["held_out_loss_se"] + last["held_out_loss_se"])
    assert last["loss"] < result.rows[1]["loss"]
    assert result.config["held_out_loss"] == last["held_out_loss"]
    assert result.config["training_flops"] == 3 * last["tokens"] * result.config["costs"]["flops_per_token"]


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_loads_and_can_be_analysed(trained, name):
    folder, result = trained[name]
    model, tokenizer = load_model(str(folder), head=True)
    batches = fp.token_batches(TEXT[:3], tokenizer, tokens=1500, max_seq_len=32)

    scan = fp.linearity(model, batches, score_sequences=4, progress=False)
    swaps = fp.commutativity(model, batches, fp.orders.swaps(result.config["layers"]), progress=False)
    pairs = fp.commutator(model, batches, progress=False)

    depth = result.config["layers"]
    assert len(resolve(model).layers) == depth
    assert len(scan.rows) == depth * len(scan.elements)
    assert {row["relative_l2"] == 0 for row in swaps.rows[1:]} == {name == "shared-layers"}
    assert len(pairs.rows) == depth * (depth - 1) // 2
    assert sum(p.numel() for p in model.parameters()) == result.config["costs"]["parameters"]


NEW_PROCESS = """
import sys
from fastprobe.models.loading import load_model
for folder in sys.argv[1:]:
    model, tokenizer = load_model(folder, head=True)
    print(type(model).__name__, float(model(**tokenizer("the statement", return_tensors="pt")).logits.sum()))
"""


def test_another_process_computes_the_same_logits(trained):
    done = subprocess.run(
        [sys.executable, "-c", NEW_PROCESS, *(str(folder) for folder, _ in trained.values())],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    for line, (name, (folder, _)) in zip(done.stdout.splitlines(), trained.items(), strict=True):
        kind, total = line.split()
        model, tokenizer = load_model(str(folder), head=True)
        logits = model(**tokenizer("the statement", return_tensors="pt")).logits
        assert kind == ("BertForMaskedLM" if name == "bert" else "BertVariantForMaskedLM")
        assert (name, float(total)) == (name, pytest.approx(logits.sum().item(), rel=1e-5))


def test_plain_bert_is_saved_as_the_bert_of_transformers(trained):
    folder, _ = trained["bert"]

    assert type(AutoModelForMaskedLM.from_pretrained(folder)) is BertForMaskedLM
    assert not list(folder.glob("*.py"))


def test_a_result_is_saved_and_plotted(trained, tmp_path):
    folder, result = trained["no-ffn"]

    loaded = fp.load(folder)
    loaded.plot(tmp_path / "losses.png")

    assert loaded.rows == result.rows
    assert loaded.config["variant"] == "no-ffn"
    assert (tmp_path / "losses.png").read_bytes()[:4] == b"\x89PNG"
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not (folder / "checkpoints").exists()


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path):
    first, again = toy(tmp_path / "a", dropout=0.1), toy(tmp_path / "b", dropout=0.1)
    other = toy(tmp_path / "c", dropout=0.1, seed=1)

    assert losses(first) == losses(again)
    assert not {loss for _, _, loss in losses(first)} & {loss for _, _, loss in losses(other)}


def interrupt_at(monkeypatch, step):
    """Send Ctrl-C in the forward pass of a step."""
    plain, calls = BertVariantForMaskedLM.forward, []

    def forward(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(BertVariantForMaskedLM, "forward", forward)


def test_a_run_resumed_after_ctrl_c_ends_with_the_same_numbers(tmp_path, monkeypatch):
    whole = toy(tmp_path / "whole", dropout=0.1)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 13)  # between two evaluations
        with pytest.raises(KeyboardInterrupt):
            toy(tmp_path / "parts", dropout=0.1)
    with pytest.raises(InputError, match="continue from them with --resume, replace them with --overwrite, or"):
        toy(tmp_path / "parts")
    with pytest.raises(InputError, match="another dropout, seed;"):
        toy(tmp_path / "parts", resume=True, seed=3)

    parts = toy(tmp_path / "parts", dropout=0.1, resume=True)

    whole_losses = {step: held_out for step, _, held_out in losses(whole)}
    assert all(whole_losses.get(step, held_out) == held_out for step, _, held_out in losses(parts))
    assert losses(parts)[-1] == losses(whole)[-1]
    weights = [AutoModelForMaskedLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@torch.no_grad()
def test_the_held_out_loss_is_the_mean_over_masked_tokens(trained):
    folder, result = trained["bert"]
    model, tokenizer = load_model(str(folder), head=True)
    corpus = run.Corpus.of(TEXT, tokenizer, max_seq_len=32, tokens=None, text_column="text", seed=0)

    logits = model(input_ids=corpus.held_out).logits
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), corpus.labels.flatten(), reduction="none")
    each = each.view_as(corpus.labels).double()
    count = (corpus.labels != -100).sum(1)
    means = each.sum(1) / count.double().mean()
    error = float((means - each.sum() / count.sum() * count / count.double().mean()).std() / len(means) ** 0.5)

    assert result.config["held_out_loss"] == pytest.approx(float(each.sum() / count.sum()), abs=1e-5)
    assert result.rows[-1]["held_out_loss_se"] == pytest.approx(error, rel=1e-5)


def test_resuming_a_finished_run_loads_it_and_refuses_other_options(trained):
    folder, result = trained["no-ffn"]
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    again = toy(folder, variant="no-ffn", resume=True)

    assert (again.rows, again.config) == (result.rows, result.config)
    with pytest.raises(InputError, match="is of a run with another steps; start anew"):
        toy(folder, variant="no-ffn", steps=21, resume=True)
    with pytest.raises(InputError, match="is of a run with another corpus, variant; start anew"):
        fp.pretrain(TEXT[:-1], folder, **(TOY | {"steps": 20, "progress": False, "resume": True}))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_corpus_gives_the_same_result_as_its_text(trained, tmp_path):
    corpus = fp.pretraining.Corpus.read(TEXT, vocab_size=400, max_seq_len=32, tokens=None, text_column="text", seed=0)

    result = fp.pretrain(corpus, tmp_path / "out", **(TOY | {"steps": 20, "progress": False}))

    assert losses(result) == losses(trained["bert"][1])
    assert result.config | {"seconds": 0} == trained["bert"][1].config | {"seconds": 0}


def test_a_given_tokenizer_is_used_and_saved(trained, tmp_path):
    folder, _ = trained["bert"]
    _, tokenizer = load_model(str(folder))

    result = toy(tmp_path / "out", tokenizer=tokenizer, vocab_size=999, steps=2)

    assert result.config["vocab_size"] == 400
    assert result.config["unigram_loss"] == trained["bert"][1].config["unigram_loss"]


def test_arguments_of_the_trainer_are_used(tmp_path):
    result = toy(tmp_path / "out", steps=3, trainer={"gradient_accumulation_steps": 2, "lr_scheduler_type": "constant"})

    assert result.rows[-1]["tokens"] == 3 * 2 * 8 * 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "albert"}, "variant: 'albert' is not one of"),
        ({"variant": "no-skip:2"}, "no layer 2 among 0 to 1"),
        ({"steps": 0}, "steps: must be 1 or more, got 0"),
        ({"heads": 3}, "heads: 3 do not divide"),
        ({"resume": True}, "there are no checkpoints in"),
        ({"trainer": {"learning_rat": 1}}, "trainer: 'learning_rat' is no field of .*; some are learning_rate"),
        ({"variant": "shared-layers", "match": "parameters"}, "match: the layers of shared-layers share one set of"),
        ({"trainer": {"lr_scheduler_type": "square"}}, "trainer: square is not"),
    ],
)
def test_invalid_options_raise_an_error_of_one_line(tmp_path, options, message):
    with pytest.raises(InputError, match=message) as caught:
        toy(tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_training_that_diverges_raises_an_error(tmp_path):
    with pytest.raises(NumericalError, match="lower learning_rate"):
        toy(tmp_path / "out", learning_rate=1e30, trainer={"max_grad_norm": 0.0})


def test_without_accelerate_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(InputError, match=r"pip install 'fastprobe\[train\]'"):
        toy(tmp_path / "out")


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(TEXT))
    options = ["--layers", "2", "--hidden-size", "32", "--vocab-size", "400", "--max-seq-len", "32", "--steps", "4"]

    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fastprobe", "pretrain",
         "--text", tmp_path / "text.txt", *options, "--device", "cpu", "--json", "--quiet", "-o", tmp_path / "out"],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["rows"][-1]["tokens"] == 4 * 2 * 8 * 32
    assert load_model(str(tmp_path / "out"), head=True)
