"""What every test has: numbers seeded by the test's name, poisoned memory, kernels in Triton's interpreter; commands.

What only commands need is imported by their fixtures: GPU tests run where it is not installed.
"""

import os
import sys
import zlib
from contextlib import suppress

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which torch may do

import pytest
import torch
from torch import Tensor

collect_ignore = ["kernels/compiled.py"]  # imports Triton, wherever it is looked through for doctests

torch.use_deterministic_algorithms(True, warn_only=True)  # fills torch.empty with NaN: an unwritten output shows
torch.set_num_threads(1)  # at these sizes threads that wait for each other take ten times what they save

with suppress(ImportError):  # a machine that has what `make gpu` needs may not have it
    from hypothesis import settings

    settings.register_profile("fastprobe", derandomize=True, deadline=None, database=None, max_examples=25)
    settings.load_profile("fastprobe")


@pytest.fixture
def generator(request) -> torch.Generator:
    """Seeded by the test's name."""
    return torch.Generator().manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def randn(generator):
    """``randn(n, d)``: independent standard normal numbers, float64 and then rounded to ``dtype``."""

    def make(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    return make


@pytest.fixture
def residual_rows(randn):
    """``residual_rows(n, d, dtype)``: as a residual stream has them, scales that differ, a few columns at mean 30."""

    def make(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
        rows = randn(n, d) * torch.logspace(-1, 1, d, dtype=torch.float64)
        rows[:, :: max(1, d // 3)] += 30.0
        return rows.to(dtype)

    return make


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny random encoder with a real tokenizer, as a folder that Transformers loads."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    from fastprobe.data.demo import demo_model_path

    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    BertModel(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch, capfd):
    """A command as a user types it: its exit code, standard output and standard error."""
    from fastprobe import cli

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
