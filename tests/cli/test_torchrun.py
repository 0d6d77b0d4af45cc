"""Commands in two processes of torchrun: what each process prints, writes and returns."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from fastprobe import cli
from fastprobe.data.demo import demo_model_path
from tests.test_several_processes import OF_ONE, difference

ROOT = Path(__file__).parents[2]
SIZES = ("--tokens", "700", "--max-seq-len", "24", "--batch-size", "4")


@pytest.fixture(scope="module")
def mlm_folder(tmp_path_factory):
    """Save a tiny random encoder with a masked-language-model head."""
    folder = tmp_path_factory.mktemp("mlm") / "tiny"
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def command(rank, *words):
    """Run a command in one process, and return its exit code, standard output and standard error."""
    sys.argv = ["fastprobe", *map(str, words)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exit:
        cli.main()
    return exit.value.code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize(
    "words",
    [
        ("linearity",),
        ("linearity", "--schedule", "layer"),
        ("permute", "--depths"),
        ("commutator",),
        ("ablate", "--mode", "linear,mean"),
        ("probe", "--orders", "1,0"),
        pytest.param(("paper",), marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_a_command_writes_and_prints_what_one_process_does(words, mlm_folder, tmp_path, run, world_of_two):
    arguments = (*words, mlm_folder, *SIZES, "--quiet")

    first, second = world_of_two(command, *arguments, "-o", tmp_path / "two")
    code, out, err = run(*arguments, "-o", tmp_path / "one")

    assert (code, err) == (0, "")
    assert first == (0, out, "")
    assert second == (0, "", "")
    written = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert written == sorted(
        path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file()
    )
    for path in (path for path in written if path.name == "scores.json"):
        one, two = (json.loads((tmp_path / folder / path).read_text()) for folder in ("one", "two"))
        assert difference(two["rows"], one["rows"]) < 1e-9
        of_one = dict.fromkeys((*OF_ONE, "command"))
        assert {**two["config"], **of_one} == {**one["config"], **of_one}


def test_progress_and_notes_come_from_the_first_process(mlm_folder, tmp_path, world_of_two):
    first, second = world_of_two(command, "linearity", mlm_folder, *SIZES, "-o", tmp_path)

    assert "scores.json" in first[2]
    assert "tokens" in first[2]
    assert second == (0, "", "")


@pytest.mark.parametrize(
    "words",
    [("merge", "a", "b", "-o", "c"), ("plot", "a"), ("points",), ("bench",), ("paper", "--train")],
    ids=lambda words: " ".join(words[:2]),
)
def test_other_commands_are_refused_in_one_line(words, world_of_two):
    first, second = world_of_two(command, *words)

    assert first[:2] == (2, "")
    assert first[2].startswith("fastprobe: torchrun: ")
    assert "runs in one process, got 2" in first[2]
    assert first[2].count("\n") == 1
    assert second == (2, "", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("linearity", "nowhere"), "could not be loaded"),
        (("permute", "--orders", "9,9"), "layer"),
        (("probe", "--unknown"), "No such option"),
    ],
)
def test_wrong_arguments_are_reported_once(words, message, world_of_two):
    first, second = world_of_two(command, *words)

    assert first[0] == second[0] == 2
    assert message in first[2]
    assert second[1:] == ("", "")


def fill_the_disk(rank, *words):
    """Run a command whose first process cannot write its result."""
    from fastprobe.results import result

    def write(path, text):
        raise OSError(28, "No space left on device", str(path))

    kept, result.write_text = result.write_text, write if rank == 0 else result.write_text
    try:
        return command(rank, *words)
    finally:
        result.write_text = kept


def test_a_full_disk_in_the_first_process_gives_all_its_exit_code(mlm_folder, tmp_path, world_of_two):
    first, second = world_of_two(fill_the_disk, "commutator", mlm_folder, *SIZES, "--quiet", "-o", tmp_path)

    assert first[0] == second[0] == 2
    assert "No space left on device" in first[2]
    assert first[2].count("\n") == 1
    assert second[1:] == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_torchrun_itself(broken, mlm_folder, tmp_path):
    """Start a command by torchrun; ``broken`` names a model that only one of the processes can see."""
    words = [
        "linearity",
        str(tmp_path / "seen-by-{rank}" if broken else mlm_folder),
        *SIZES,
        "-o",
        str(tmp_path / "out"),
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = tmp_path / "start.py"
    script.write_text(
        "import os, sys\n"
        "sys.argv = ['fastprobe', *(word.replace('{rank}', os.environ['RANK']) for word in sys.argv[1:])]\n"
        "from fastprobe.cli import main\n"
        "main()\n"
    )
    os.symlink(mlm_folder, tmp_path / "seen-by-0")

    done = subprocess.run(
        [*launcher, str(script), *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )

    lines = [line for line in done.stderr.splitlines() if line.startswith("fastprobe: ")]
    if broken:
        assert done.returncode
        assert len(lines) == 1
        assert "seen-by-1' could not be loaded" in lines[0]
        assert done.stderr.count("exitcode  : 2") + done.stderr.count("exitcode: 2") >= 1
    else:
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out" / "scores.json").exists()
