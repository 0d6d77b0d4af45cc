"""The choice of libraries and instruction sets by the table of processor families."""

import ast
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import fastprobe.ops
from fastprobe.errors import BackendError
from fastprobe.ops import products
from fastprobe.ops._dispatch import cpu_library, processors

CHOICES = """
import torch
from fastprobe.ops import products
from fastprobe.ops._dispatch import cpu_library, processors
from fastprobe.ops.encoder import cpu
print(processors.family(), products._takes_onednn(), cpu_library.instruction_sets(), cpu.products_are_faster(10_000))
"""


def cpuinfo(vendor, flags):
    one = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: some: name\nflags\t\t: {flags}\n"
    return f"{one}\n{one}\n"


@pytest.mark.parametrize(
    ("vendor", "flags", "name"),
    [
        ("AuthenticAMD", "fpu avx2 avx512f avx512_bf16", "zen4"),
        ("AuthenticAMD", "fpu avx2", "unknown"),
        ("GenuineIntel", "fpu avx512f avx512_bf16 amx_tile", "emerald-rapids"),
        ("GenuineIntel", "fpu avx512f", "unknown"),
        ("HygonGenuine", "fpu avx2 avx512_bf16", "unknown"),
    ],
)
def test_a_processor_is_recognised_by_vendor_and_flag(vendor, flags, name):
    assert processors.family_of(cpuinfo(vendor, flags)).name == name


@pytest.mark.parametrize("text", ["", "\n", "processor : 0\nFeatures : asimd sve\n"])
def test_a_processor_that_is_not_described_is_unknown(text):
    assert processors.family_of(text) is processors.UNKNOWN


def test_a_system_without_cpuinfo_is_unknown(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)

    assert processors.family_of(processors._cpuinfo()) is processors.UNKNOWN


def test_unknown_processors_get_the_choices_of_torch():
    row = processors.UNKNOWN

    assert (row.onednn, row.bfloat16_pairs, row.sublayers) == (False, False, False)


def test_the_environment_names_another_row(monkeypatch):
    monkeypatch.setenv("FASTPROBE_PROCESSOR", "zen4")
    assert processors.family().onednn
    assert products._takes_onednn() == products._onednn_agrees()

    monkeypatch.setenv("FASTPROBE_PROCESSOR", "unknown")
    assert processors.family() is processors.UNKNOWN
    assert not products._takes_onednn()


def test_an_unknown_name_is_answered_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("FASTPROBE_PROCESSOR", "z80")

    with pytest.raises(BackendError, match="must be one of zen4, emerald-rapids, unknown, got 'z80'; unset it"):
        processors.family()


@pytest.mark.parametrize(("family", "first"), [("zen4", "avx512-bf16"), ("emerald-rapids", "avx512")])
def test_pairs_of_bfloat16_come_first_only_where_they_are_faster(family, first, monkeypatch):
    library = types.ModuleType("_cpu")
    library.instruction_sets = lambda: ["avx512-bf16", "avx512", "portable"]
    monkeypatch.setattr(cpu_library, "cpu_library", lambda: library)
    monkeypatch.setenv("FASTPROBE_PROCESSOR", family)

    assert cpu_library.instruction_sets()[0] == first
    assert sorted(cpu_library.instruction_sets()) == sorted(library.instruction_sets())


def test_operations_read_no_clock_to_choose():
    """A measurement at first use would differ between processes; only ``tuning()`` measures, when it is asked to."""
    clocks = {"time", "perf_counter", "monotonic", "process_time", "timeit", "elapsed_time", "enable_timing"}
    for path in Path(fastprobe.ops.__path__[0]).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
        assert path.name == "tune.py" or not names & clocks, f"{path} reads a clock: {names & clocks}"


@pytest.mark.slow
def test_processes_under_load_make_the_same_choices():
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        runs = [subprocess.Popen([sys.executable, "-c", CHOICES], stdout=subprocess.PIPE, text=True) for _ in range(2)]
        found = [run.communicate()[0] for run in runs]
    finally:
        for process in busy:
            process.kill()
            process.wait()

    assert found[0].startswith("Family(")
    assert found[0] == found[1]
