"""Run every code block of README.md and docs/, and check links, paths, tables and names of all documents.

The blocks run as they stand, except for what the tables below put in place of large models, texts and sizes.
"""

import functools
import importlib
import json
import re
import shlex
import string
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
import typer
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

import fastprobe as fp
from fastprobe.cli import app
from fastprobe.orders.by_name import FAMILIES
from tests.test_architecture import FLOORS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "NOTES.md"]
SLOW = {"paper.md", "pretraining.md"}  # they train models

DEPTH = 6
"""Layers of the small models: as many as the demo encoder has, so that orders of six layers run."""

DEPTHS = {"paper.md": 3}
"""Other numbers of layers, by page."""

LARGE = ("smollm2", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B")
"""Models in the place of which a small GPT-2 runs."""

SIZES = {
    "linearity": "--tokens 1200 --max-seq-len 32",
    "permute": "--tokens 300 --max-seq-len 32",
    "commutator": "--tokens 300 --max-seq-len 32",
    "ablate": "--tokens 600 --max-seq-len 32",
    "probe": "--tokens 600 --max-seq-len 32",
    "paper": "--tokens 300 --max-seq-len 24",
    "pretrain": "--tokens 4k --steps 3 --layers 2 --hidden-size 16 --vocab-size 300 --max-seq-len 32 --batch-size 4"
    " --text corpus.txt",
}
"""Options that are added to a command; the last of two equal options counts."""

TRAINED = "--variant no-ffn --variant no-skip:1 --steps 3 --layers 3 --hidden-size 16 --vocab-size 300"
TRAINED += " --train-batch-size 4 --text corpus.txt"
"""Options that are added to ``paper --train``."""

PYTHON = {
    r"\btokens=[\d_]+": "tokens=600, max_seq_len=32",
    r"\bsteps=\d+": "steps=3, layers=2, hidden_size=16, vocab_size=300, max_seq_len=32, batch_size=4",
}
"""Sizes in Python blocks and what takes their place."""

TAKE_A_MODEL = {"linearity", "permute", "commutator", "ablate", "probe", "points", "paper"}
NOT_RUN = {"bench", "download"}  # one times this machine, one needs the network


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """Return the fenced blocks of a page: language, code, line."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(block[1], block[2], text[: block.start()].count("\n") + 2) for block in found]


def prose(document: Path) -> str:
    """Return a document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def small_tokenizer() -> BertTokenizer:
    """Return a tokenizer of letters and frequent words."""
    text = " ".join(list(topics.values())[:24]).lower()
    letters = sorted({*text} - {*string.whitespace})
    words = [word for word, _ in Counter(re.findall("[a-z]{2,}", text)).most_common(300)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *words]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})


@pytest.fixture(scope="session")
def small_models(tmp_path_factory):
    """``small_models(depth)``: folders of small random models by the name of the model that they stand for."""
    tokenizer = small_tokenizer()

    @functools.cache
    def of_depth(depth: int) -> dict[str, Path]:
        torch.manual_seed(0)
        bert = {"hidden_size": 16, "num_hidden_layers": depth, "num_attention_heads": 2, "intermediate_size": 32}
        gpt2 = {"n_embd": 16, "n_layer": depth, "n_head": 2, "bos_token_id": 2, "eos_token_id": 3}
        models = {
            "bert-base-uncased": BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **bert)),
            "gpt2": GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **gpt2)),
        }
        folders = {name: tmp_path_factory.mktemp("models") / name for name in models}
        for name, model in models.items():
            model.save_pretrained(folders[name])
            tokenizer.save_pretrained(folders[name])
        return folders | dict.fromkeys(LARGE, folders["gpt2"])

    return of_depth


@pytest.fixture
def files(tmp_path, monkeypatch) -> None:
    """Run in a folder that has the files that pages name."""
    monkeypatch.chdir(tmp_path)
    texts = list(topics.values())
    Path("corpus.txt").write_text("\n".join(texts[:12]), encoding="utf-8")
    Path("notes.txt").write_text("\n".join(texts[12:24]), encoding="utf-8")
    Path("orders.txt").write_text("0,2,1,3,4,5\n0,1,2,2,4,5\n", encoding="utf-8")
    words = " ".join(texts).split()[:400]
    rows = [{"tokens": words[i : i + 20], "ner_tags": ["O", "B-ORG"] * 10} for i in range(0, 400, 20)]
    Path("conll.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def small(words: list[str], models: dict[str, Path]) -> list[str]:
    """Return the words of a command with a small model and small sizes."""
    command, *rest = words
    if command in TAKE_A_MODEL and "--train" not in rest:
        name, rest = (rest[0], rest[1:]) if rest and not rest[0].startswith("-") else ("bert-base-uncased", rest)
        rest = [str(models.get(name, name)), *rest]
    sizes = SIZES.get(command, "") + (" " + TRAINED if "--train" in rest else "")
    return [command, *rest, *sizes.split()]


def check_options(words: list[str]) -> None:
    """Check that a command and its options exist."""
    command = typer.main.get_command(app.app).commands[words[0]]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


def check_line(line: str, run, models: dict[str, Path], monkeypatch) -> None:
    """Run one line of a shell block, or check what cannot be run here."""
    words = shlex.split(line, comments=True)
    with monkeypatch.context() as patch:
        while "=" in words[0]:
            patch.setenv(*words.pop(0).split("=", 1))
        program, *rest = words
        if program == "fastprobe" and rest[0] not in NOT_RUN:
            code, _, err = run(*small(rest, models))
            assert code == 0, f"{line}: {err}"
        elif program == "fastprobe":
            check_options(rest)
        elif program == "torchrun":
            check_options(rest[rest.index("fastprobe") + 1 :])
        elif program == "make":
            assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in rest)
        elif program == "pip":
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(re.findall(r"\w+", re.search(r"\[(.*)\]", rest[-1])[1])) <= {*extras}
        elif program == "python":
            subprocess.run([sys.executable, *rest], cwd=ROOT, capture_output=True, check=True)
        else:
            pytest.fail(f"no rule says how to check: {line}")


def small_code(code: str, models: dict[str, Path]) -> str:
    """Return Python code with small models and sizes."""
    for name, folder in models.items():
        code = code.replace(f'"{name}"', repr(str(folder)))
    for pattern, size in PYTHON.items():
        code = re.sub(pattern, size, code)
    return code


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page.name in SLOW), id=page.name) for page in PAGES]
)
def test_every_block_of_a_page_runs(page, small_models, files, run, monkeypatch):
    models = small_models(DEPTHS.get(page.name, DEPTH))
    names: dict[str, object] = {"__name__": "__main__"}
    for language, code, line in blocks(page):
        assert language in ("bash", "python", "text"), f"{page.name}:{line}: mark the block bash, python or text"
        if language == "bash":
            for command in code.replace("\\\n", " ").splitlines():
                if command.strip():
                    check_line(command, run, models, monkeypatch)
        elif language == "python":
            exec(compile("\n" * (line - 1) + small_code(code, models), page.name, "exec"), names)


def anchors(document: Path) -> set[str]:
    """Return the anchors of the headings of a document, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_link_leads_somewhere(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (document.parent / path).resolve() if path else document
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_path_that_is_named_exists(document):
    written = {f"benchmarks/results/gpu/{call}/table.md" for call in ("first", "second")}  # by make gpu
    absent = {"kernels/__init__.py"} | written  # the former must never exist
    folders, suffixes = "tests|benchmarks|fastprobe|csrc|kernels|docs", "py|h|cuh|cpp|cu|json|md"
    for path in re.findall(rf"(?<![\w/])((?:{folders})/[\w/.]*\w\.(?:{suffixes}))\b", prose(document)):
        assert path in absent or (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_table_of_measurements_is_what_its_command_prints(page):
    text = prose(page)
    tables = re.findall(r"^.*, \d+ threads, .*\n\n(?:\|.*\n)+", text, re.MULTILINE)
    assert bool(tables) == (page.name == "performance.md")
    commands = re.findall(r"`python\s+(benchmarks/report\.py[^`]+)`", text) if tables else []
    printed = [
        subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, capture_output=True, text=True, check=True)
        for command in commands
    ]
    for table in tables:
        assert any(table.strip() in done.stdout for done in printed), table.splitlines()[0]


def test_the_readme_is_short_and_every_page_is_in_the_contents():
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")

    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
    assert all(f"({page.name})" in contents for page in PAGES[1:] if page.name != "index.md")


def test_every_family_of_orders_is_documented_and_every_example_runs():
    page = (ROOT / "docs" / "orders.md").read_text(encoding="utf-8")
    table = re.search(r"^\| what \| meaning \|\n(.*?)\n\n", page, re.MULTILINE | re.DOTALL)[1]
    examples = [name for row in table.splitlines() for name in re.findall("`(.*?)`", row.split("|")[1])]

    for name in examples:
        assert name.startswith("file:") or fp.orders.named(name, DEPTH)
    assert {*FAMILIES} <= {name.partition(":")[0] for name in examples}


def test_every_command_is_documented():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)

    for command in typer.main.get_command(app.app).commands:
        assert f"fastprobe {command}" in text


def test_the_table_of_commands_has_every_command_with_its_function_and_room():
    contents = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    table = re.search(r"^\| command \| function \|[^\n]*\n\|[-|]+\n(.*?)\n\n", contents, re.MULTILINE | re.DOTALL)[1]
    commands = set()

    for row in table.splitlines():
        command, function, _, room, _ = (cell.strip() for cell in row.strip("|").split("|"))
        commands |= set(re.findall(r"fastprobe (\w+)", command))
        if found := re.fullmatch(r"`(\w+)` in `([\w.]+)`", function):
            assert hasattr(importlib.import_module(found[2]), found[1]), function
        assert all(hasattr(fp, name) for name in re.findall(r"`fp\.(\w+)`", function)), function
        assert (ROOT / "fastprobe" / room.strip("`")).is_dir(), room
    assert commands == {*typer.main.get_command(app.app).commands}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_in_the_text_exists(page):
    commands = typer.main.get_command(app.app).commands.values()
    known = {option for command in commands for parameter in command.params for option in parameter.opts} | {"--help"}
    spans = [span for span in re.findall("`([^`]+)`", prose(page)) if not re.match("pip|python|pytest|torchrun", span)]

    assert {option for span in spans for option in re.findall(r"(?<!\S)--[a-z-]+", span)} <= known


def test_every_column_of_every_result_is_explained(small_models):
    folder = small_models(DEPTH)["bert-base-uncased"]
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batches = fp.token_batches("One sentence of a text. " * 40, tokenizer, tokens=300, max_seq_len=16)
    orders = fp.orders.swaps(DEPTH)[:1]
    results = [
        fp.linearity(model, batches, layers=[0], elements=["ffn"], progress=False),
        fp.commutativity(model, batches, orders, depths=True, progress=False),
        fp.commutator(model, batches, state=0, progress=False),
        fp.ablation(model, batches, layers=[0], progress=False),
        fp.probe(model, batches, tasks="token", progress=False),
    ]
    explained = set(re.findall(r"\w+", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")))

    for result in results:
        for column in {column for row in result.rows for column in row}:
            assert column in explained or column.replace("_se", "") in explained, column


def test_the_pictures_of_the_rooms_show_every_room():
    rooms, floors = (code for _, code, _ in blocks(ROOT / "CONTRIBUTING.md"))
    shown = re.findall(r"^  (\w+)/", rooms.partition("\nkernels/ ")[0], re.MULTILINE)

    assert {*shown} == {path.parent.name for path in (ROOT / "fastprobe").glob("*/__init__.py")}
    assert [{*line.strip().split(", ")} for line in floors.splitlines()] == FLOORS[-2::-1]  # without __main__
