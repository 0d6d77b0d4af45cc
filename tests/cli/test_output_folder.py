"""Folders of commands: each has its own by default, and no run replaces the files of another."""

import inspect
import shutil
from pathlib import Path

import pytest

import fastprobe as fp
from fastprobe.cli import ablate, commutator, linearity, paper, permute, pretrain, probe
from fastprobe.models.loading import load_model
from fastprobe.pretraining.corpus import Corpus
from fastprobe.runtime.journal import FILE as JOURNAL
from fastprobe.scan.checkpoint import FILE

SIZES = ("--tokens", "600", "--max-seq-len", "24", "--batch-size", "8", "--quiet")
COMMANDS = {
    "linearity": "linearity",
    "permute": "commutativity",
    "commutator": "commutator",
    "ablate": "ablation",
    "probe": "probe",
}
"""Command -> kind of its result."""
RESUMABLE = {"linearity", "permute", "ablate"}


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(model_folder, tmp_path_factory):
    """Return the folder of a result of each command. Tests must not change it."""
    parent = tmp_path_factory.mktemp("written")
    model, tokenizer = load_model(str(model_folder))
    batches = fp.token_batches("One sentence of a text. " * 100, tokenizer, tokens=300, max_seq_len=24)
    results = {
        "linearity": fp.linearity(model, batches, elements=["ffn"], progress=False),
        "permute": fp.commutativity(model, batches, fp.orders.swaps(2), progress=False),
        "commutator": fp.commutator(model, batches, progress=False),
        "ablate": fp.ablation(model, batches, progress=False),
        "probe": fp.probe(model, batches, tasks="token", progress=False),
    }
    for command, result in results.items():
        result.config["model"] = "a model"
        result.save(parent / command)
    return parent


@pytest.fixture
def command(run, model_folder):
    return lambda name, *arguments: run(name, model_folder, *SIZES, *arguments)


def test_every_command_has_a_folder_of_its_own():
    modules = (linearity, permute, commutator, ablate, probe, paper, pretrain)
    names = [module.__name__.rpartition(".")[2] for module in modules]
    commands = [getattr(module, name) for module, name in zip(modules, names, strict=True)]

    folders = [inspect.signature(one).parameters["out"].default for one in commands]

    assert folders == [Path("fastprobe-out") / name for name in names]


def test_commands_without_a_folder_leave_each_others_results(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    for name in COMMANDS:
        assert command(name)[0] == 0

    kinds = {path.name: fp.load(path).kind for path in (tmp_path / "fastprobe-out").iterdir()}
    assert kinds == COMMANDS


@pytest.mark.parametrize("there", COMMANDS)
@pytest.mark.parametrize("name", [*COMMANDS, "merge"])
def test_a_result_is_not_replaced_by_another_run(command, run, written, name, there, monkeypatch):
    monkeypatch.setattr("fastprobe.cli.source.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    folder = written / there
    before = contents(folder)

    if name == "merge":
        code, out, err = run("merge", written / "linearity", written / "linearity2", "--out", folder, "--quiet")
    else:
        code, out, err = command(name, "--out", folder)

    assert (code, out) == (2, "")
    tokens = fp.load(folder).config["tokens"]
    resume = "continue it with --resume, " if name == there == "linearity" else ""  # only its folder has such a file
    assert err == (
        f"fastprobe: out: {folder} holds a result ({COMMANDS[there]} of a model, {tokens} tokens); {resume}"
        "replace it with --overwrite, or name another folder with --out\n"
    )
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("name", "there"),
    [(name, there) for name in sorted(RESUMABLE) for there in COMMANDS if (name, there) != ("linearity", "linearity")],
)
def test_resume_replaces_no_result_that_it_cannot_continue(command, written, name, there):
    """The folders hold results without a journal. That of the scan has its moments."""
    before = contents(written / there)

    code, out, err = command(name, "--resume", "--out", written / there)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"and no {COMMANDS[name]} run to continue; replace it with --overwrite, or name another" in err
    assert contents(written / there) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_overwrite_replaces_a_result(command, written, name, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(written / "probe", folder)
    (folder / f"{COMMANDS[name]}.png").write_bytes(b"a picture")

    assert command(name, "--overwrite", "--out", folder)[0] == 0

    assert fp.load(folder).kind == COMMANDS[name]
    assert fp.load(folder).config["model"] != "a model"
    assert (folder / f"{COMMANDS[name]}.png").read_bytes() != b"a picture"


@pytest.mark.parametrize("name", sorted(RESUMABLE))
def test_an_unfinished_run_is_not_replaced(command, name, tmp_path):
    keeping = ("--keep-moments",) if name == "linearity" else ()
    assert command(name, *keeping, "--out", tmp_path)[0] == 0
    kept = tmp_path / (FILE if name == "linearity" else JOURNAL)
    for path in contents(tmp_path).keys() - {kept}:
        path.unlink()
    before = contents(tmp_path)

    code, out, err = command(name, "--out", tmp_path)

    assert (code, out) == (2, "")
    assert err.startswith(f"fastprobe: out: {tmp_path} holds {kept.name}; continue it with --resume, replace it with ")
    assert contents(tmp_path) == before
    assert command(name, "--resume", "--out", tmp_path)[0] == 0


def test_a_journal_without_an_order_is_nothing_to_lose(command, tmp_path):
    (tmp_path / JOURNAL).write_text('{"model": "a model"}\n')

    assert command("permute", "--out", tmp_path)[0] == 0


@pytest.mark.parametrize("present", ["scores.csv", "linearity.png", "scores.json"])
def test_files_of_other_programs_are_not_replaced(command, tmp_path, present):
    (tmp_path / present).write_text("1,2")

    code, _, err = command("linearity", "--out", tmp_path)

    assert code == 2
    named = "a scores.json of another program" if present == "scores.json" else present
    assert f"out: {tmp_path} holds {named}; " in err
    assert (tmp_path / present).read_text() == "1,2"


@pytest.mark.parametrize("name", sorted(RESUMABLE | {"paper", "pretrain"}))
def test_a_run_does_not_start_anew_and_continue(run, name, tmp_path):
    code, out, err = run(name, "--resume", "--overwrite", "--quiet", "--out", tmp_path)

    assert (code, out) == (2, "")
    assert err == "fastprobe: --overwrite: it starts anew, and --resume continues; give one of the two\n"


@pytest.mark.parametrize("present", ["paper.html", "swaps/scores.json", "features/scores.csv"])
@pytest.mark.parametrize("options", [(), ("--train",)])
def test_a_page_and_its_results_are_not_replaced(run, tmp_path, monkeypatch, present, options):
    monkeypatch.setattr(Corpus, "read", lambda *_, **__: pytest.fail("a text was read"))
    (tmp_path / present).parent.mkdir(exist_ok=True)
    (tmp_path / present).write_text("kept")

    code, out, err = run("paper", *options, "--quiet", "--out", tmp_path)

    assert (code, out) == (2, "")
    assert err == (
        f"fastprobe: out: {tmp_path} holds {present} of an earlier run; continue it with --resume, replace it with "
        "--overwrite, or choose another folder\n"
    )
    assert (tmp_path / present).read_text() == "kept"


@pytest.mark.parametrize(
    ("present", "what"),
    [
        ("scores.json", "a model or a result (scores.json)"),
        ("config.json", "a model or a result (config.json)"),
        ("checkpoints/checkpoint-2/trainer_state.json", "checkpoints"),
    ],
)
def test_a_training_replaces_no_model(run, tmp_path, monkeypatch, present, what):
    monkeypatch.setattr(Corpus, "read", lambda *_, **__: pytest.fail("a text was read"))
    (tmp_path / present).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / present).write_text("{}")

    code, out, err = run("pretrain", "--steps", "2", "--quiet", "--out", tmp_path)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"out: {tmp_path} holds {what}; " in err
    assert "replace them with --overwrite, or choose another folder" in err
    assert (tmp_path / present).read_text() == "{}"


def test_a_training_with_overwrite_starts_anew(tmp_path):
    (tmp_path / "text.txt").write_text("One sentence of a text, and another. " * 200)
    toy = {"steps": 2, "layers": 1, "hidden_size": 8, "vocab_size": 60, "max_seq_len": 16, "batch_size": 2}
    (tmp_path / "model" / "checkpoints" / "checkpoint-9").mkdir(parents=True)
    (tmp_path / "model" / "scores.json").write_text("{}")

    fp.pretrain(tmp_path / "text.txt", tmp_path / "model", overwrite=True, progress=False, **toy)

    assert fp.load(tmp_path / "model").rows[-1]["step"] == 2
    assert not (tmp_path / "model" / "checkpoints").exists()
