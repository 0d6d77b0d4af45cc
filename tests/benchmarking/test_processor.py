"""``fastprobe bench``: rows have their names, rates and errors; configurations are measured and saved."""

import json

import pytest
import torch

from fastprobe import cli
from fastprobe.benchmarking import processor as bench
from fastprobe.benchmarking.configurations import tune
from fastprobe.errors import BackendError
from fastprobe.ops._dispatch.cpu_library import instruction_sets


@pytest.mark.skipif(not instruction_sets(), reason="fastprobe._cpu was not built")
def test_rows_carry_rates_and_errors(monkeypatch, capsys):
    monkeypatch.setattr("fastprobe.cli.bench.bench_cpu", lambda: bench.cpu(rounds=1, tokens=200))
    monkeypatch.setattr("sys.argv", ["fastprobe", "bench", "cpu", "--json", "--quiet"])

    with pytest.raises(SystemExit) as stopped:
        cli.main()

    assert not stopped.value.code
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["operation"] for row in rows} == {"gram_", "score"}
    assert {row["instruction_set"] for row in rows} == set(instruction_sets())
    assert all(row["error"] <= 1e-6 for row in rows)
    assert all(row["of_peak"] == pytest.approx(row["gflops"] / row["peak_gflops"]) for row in rows)
    assert all(row["gflops"] > 0 and row["times_torch"] > 0 for row in rows)  # at 200 rows: any rate will do


def test_without_the_kernels_the_error_is_one_line(monkeypatch):
    monkeypatch.setattr("fastprobe.benchmarking.processor.instruction_sets", list)
    monkeypatch.setattr("fastprobe.ops._dispatch.cpu_library.cpu_library", lambda: None)

    with pytest.raises(BackendError, match=r"bench cpu: fastprobe._cpu was not built; with a C\+\+ compiler"):
        next(bench.cpu())


def test_tuning_measures_every_kernel_once_and_saves_the_result(monkeypatch, tmp_path, capsys):
    pytest.importorskip("triton")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seconds = iter(range(1, 1000))
    rows = list(
        tune([16], 128, device="cpu", timer=lambda run: next(seconds))
    )  # in the interpreter, without running it
    monkeypatch.setattr("fastprobe.cli.bench.tune", lambda: iter(rows))
    monkeypatch.setattr("sys.argv", ["fastprobe", "bench", "tune", "--quiet"])

    with pytest.raises(SystemExit) as stopped:
        cli.main()

    assert not stopped.value.code
    kernels = [f"{kernel} {dtype}" for dtype in ("bfloat16", "float16", "float32") for kernel in ("gram_", "score")]
    assert [row["kernel"] for row in rows] == kernels
    out = capsys.readouterr().out
    assert all(kernel in out for kernel in kernels)
    assert list(tune([16], 128, device="cpu", timer=lambda run: next(seconds))) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_without_a_gpu_is_one_line():
    with pytest.raises(BackendError, match=r"bench tune: .* sees no GPU"):
        next(tune())
