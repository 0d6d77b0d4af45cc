"""Fixtures of all tests: random numbers seeded by the test's name, and a runner of commands.

Uninitialised memory is filled with NaN. Triton kernels run in the interpreter. Fixtures of commands import their
libraries themselves, because GPU tests also run without these libraries.
"""

import os
import sys
import zlib
from contextlib import suppress

os.environ.setdefault("TRITON_INTERPRET", "1")  # before the import of triton, which torch may import
# Read when NumPy is imported. On a busy machine, threads that wait for each other make an SVD a hundred times slower.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch
from torch import Tensor

collect_ignore = ["kernels/compiled.py"]  # it imports Triton, so doctest collection must skip it

torch.use_deterministic_algorithms(True, warn_only=True)  # fills torch.empty with NaN, so unwritten output shows
torch.set_num_threads(1)  # more threads are ten times slower at these sizes

with suppress(ImportError):  # `make gpu` does not need hypothesis
    from hypothesis import settings

    settings.register_profile("fastprobe", derandomize=True, deadline=None, database=None, max_examples=25)
    settings.load_profile("fastprobe")


@pytest.fixture
def generator(request) -> torch.Generator:
    """Return a generator seeded by the test's name."""
    return torch.Generator().manual_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture
def randn(generator):
    """Return ``randn(n, d)``: standard normal numbers, drawn in float64 and rounded to ``dtype``."""

    def make(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    return make


@pytest.fixture
def residual_rows(randn):
    """Return ``residual_rows(n, d, dtype)``: rows like a residual stream: scales 0.1 to 10, some means of 30."""

    def make(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
        rows = randn(n, d) * torch.logspace(-1, 1, d, dtype=torch.float64)
        rows[:, :: max(1, d // 3)] += 30.0
        return rows.to(dtype)

    return make


@pytest.fixture(scope="session")
def world_of_two(tmp_path_factory):
    """Start two processes of ``torch.distributed``, for all tests of a session."""
    from tests.worlds import World

    world = World(2, tmp_path_factory.mktemp("world"))
    yield world
    world.close()


@pytest.fixture(scope="session")
def world_of_four(tmp_path_factory):
    """Start four processes of ``torch.distributed``, for all tests of a session."""
    from tests.worlds import World

    world = World(4, tmp_path_factory.mktemp("world"))
    yield world
    world.close()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Save a tiny random encoder with a real tokenizer to a folder."""
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
    """Return a function that runs a command and returns its exit code, standard output and standard error."""
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
    """Return a function that runs ``fastprobe linearity`` on the tiny model and a short text."""

    def scan(*arguments, out=tmp_path / "out"):
        sizes = ("--tokens", "1500", "--max-seq-len", "32", "--batch-size", "8", "--out", out)
        return run("linearity", model_folder, *sizes, *arguments)

    return scan
