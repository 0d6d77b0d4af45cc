"""The runner of measurements on a GPU, rehearsed without one: nothing stops it, and what was measured is kept."""

import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

pytest.importorskip("triton")

from packaging.requirements import Requirement

from benchmarks.gpu import gram, run
from benchmarks.gpu.rows import Rows, merged, race
from benchmarks.gpu.smoke import AGREE, ERRORS
from benchmarks.gpu.smoke_names import NAMES
from benchmarks.gpu.step import STEPS, function_of
from benchmarks.gpu.table import table

ROOT = Path(__file__).parents[2]
THERE = ("torch", "triton", "transformers", "numpy", "pytest", "pybind11", "setuptools")
"""Packages of the machine with a GPU. What they require is there, too."""


def found(path):
    return merged(iter(path.read_text().splitlines()))


@pytest.mark.parametrize("call", run.CALLS)
def test_every_step_of_a_call_exists(call):
    assert set(run.CALLS[call]) - {"ncu", "tests"} <= set(STEPS)
    assert all(callable(function_of(name)) for name in STEPS)


def test_every_backend_has_a_smoke_test():
    assert set(NAMES) == set(AGREE) | set(ERRORS)


def test_a_wrong_result_is_written_beside_its_time_and_stops_nothing(tmp_path):
    contestants = {"ours": lambda: 2.0, "torch": lambda: 1.0}

    race(Rows(tmp_path / "rows"), "task", "case", contestants, error=lambda got: abs(got - 1), gate=1e-6, seconds=0.01)

    ours, theirs = found(tmp_path / "rows")
    assert ours["ms"] > 0
    assert (ours["error"], ours["passes"], theirs["passes"]) == (1.0, False, True)


def test_a_contestant_that_raises_is_named_and_the_others_run(tmp_path):
    def broken():
        raise RuntimeError("out of resources\nmore lines")

    race(Rows(tmp_path / "rows"), "task", "case", {"ours": broken, "torch": lambda: 1}, seconds=0.01)

    ours, theirs = found(tmp_path / "rows")
    assert ours["failed"] == "RuntimeError: out of resources"
    assert theirs["ms"] > 0


def test_an_error_of_cuda_ends_the_process_after_it_is_written(tmp_path):
    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        race(Rows(tmp_path / "rows"), "task", "case", {"ours": broken, "torch": lambda: 1}, seconds=0.01)

    assert "illegal" in found(tmp_path / "rows")[0]["failed"]


def test_a_line_that_was_cut_off_does_not_lose_the_others(tmp_path):
    rows = Rows(tmp_path / "rows")
    rows.write("task", "case", "ours", ms=1.0)
    rows.write("task", "case", "ours", error=1e-7)
    with (tmp_path / "rows").open("a") as file:
        file.write('{"task": "task", "ca')

    assert [(row["ms"], row["error"]) for row in found(tmp_path / "rows")] == [(1.0, 1e-7)]


def test_a_backend_that_is_off_takes_no_part(monkeypatch):
    rows = gram.rows_of(2, 8, tokens=16)

    monkeypatch.setenv("FASTPROBE_OFF", "cuda,triton")
    assert gram.our_backends(rows, gram.PAIR) == {}
    monkeypatch.setenv("FASTPROBE_OFF", "cuda")
    assert set(gram.our_backends(rows, gram.PAIR)) == {"triton"}


def test_a_step_that_hangs_is_stopped_and_the_next_one_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "NAMES", ())
    monkeypatch.setenv("FASTPROBE_HANG", "lengths")
    here = run.Run(tmp_path, seconds=120)

    run.main(here, {"lengths": 6, "ceiling": 90}, build_first=False)

    text = (tmp_path / "table.md").read_text()
    assert "| ceiling | 64^3 bf16 | torch |" in text
    assert "lengths: stopped after 6 s; see logs" in text
    assert json.loads((tmp_path / "machine.json").read_text())["versions"]["torch"] != "none"


def test_a_smoke_test_that_fails_turns_its_backend_off(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "NAMES", ("no such backend",))
    here = run.Run(tmp_path, seconds=120)

    run.smoke(here)

    assert here.off == ["no such backend"]
    assert "no such backend is off: exit code 1; KeyError" in (tmp_path / "notes.txt").read_text()


def test_steps_for_which_no_time_is_left_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "NAMES", ())
    here = run.Run(tmp_path, seconds=5)

    start = time.monotonic()
    run.main(here, run.CALLS["1"], build_first=False)

    assert time.monotonic() - start < 30
    assert "pair 768: no time left" in (tmp_path / "notes.txt").read_text()


def test_the_table_names_the_fastest_of_ours_and_what_misses_the_gate(tmp_path):
    (tmp_path / "rows").mkdir()
    about = {"device": "H100", "python": "3.12", "versions": {"torch": "2.11"}, "commit": "abc"}
    (tmp_path / "machine.json").write_text(json.dumps(about))
    rows = Rows(tmp_path / "rows" / "x.jsonl")
    rows.write("ceiling", "8192^3 bf16", "torch", ms=1.0, gflops=800.0)
    for name, ms, error in (("cuda", 2.0, 1e-7), ("triton", 3.0, 1e-7), ("torch bf16", 4.0, 1e-3)):
        rows.write("pair", "768", name, ms=ms, wall_ms=ms, gflops=400.0, error=error, gate=1e-6, passes=error <= 1e-6)
    rows.write("pair", "768", "torch tf32", failed="OutOfMemoryError: too large")
    rows.write("sums", "chain 128", "triton", bias=-1e-7)

    lines = table(tmp_path).splitlines()

    expected = ["pair", "768", "torch bf16", "4.000", "4.000", "–", "400", "50%", "2.00", "1.0e-03 (misses the gate)"]
    assert "| " + " | ".join(expected) + " | 1e-06 |" in lines
    assert any("torch tf32 | failed: OutOfMemoryError" in line for line in lines)
    assert "* chain 128, triton: bias -1e-07" in lines


def test_make_gpu_runs_both_calls():
    command = ["make", "--dry-run", "gpu", "gpu-second", "PYTHON=python3"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "python3 -m benchmarks.gpu.run 1 --out benchmarks/results/gpu/first --seconds 290" in printed
    assert "python3 -m benchmarks.gpu.run 2 --out benchmarks/results/gpu/second --seconds 290" in printed


@pytest.fixture(scope="module")
def only(tmp_path_factory):
    """Return a folder with the packages of the machine with a GPU and what they require, and no others."""
    folder, left, seen = tmp_path_factory.mktemp("only"), list(THERE), set()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        for top in {path.parts[0] for path in package.files or () if path.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(package.locate_file(top)))
        needs = map(Requirement, package.requires or ())
        left += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return folder


def alone(only, *command):
    """Run Python with these packages alone."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, only))), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-S", *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_steps_need_nothing_but_the_packages_of_that_machine(only):
    code = "from benchmarks.gpu import run, smoke, step; [step.function_of(name) for name in step.STEPS]; import {}"

    assert alone(only, "-c", code.format("sys")).stderr == ""
    assert "No module named 'hypothesis'" in alone(only, "-c", code.format("hypothesis")).stderr


def test_the_gpu_tests_are_collected_with_the_packages_of_that_machine(only):
    done = alone(only, "-m", "pytest", "--collect-only", "-q", *run.gpu_tests())

    assert done.returncode == 0, done.stdout[-2000:]
    assert "tests collected" in done.stdout
