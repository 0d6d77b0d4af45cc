"""Print a ``--benchmark-json`` file as Markdown tables: ``python benchmarks/report.py results/X.json``.

``--brief PATTERN`` prints only the machine and the rows whose case matches, as in the README.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("Task", "Case", "Against", "Times as fast, median [IQR]", "Our error", "Its error", "Our GFLOP/s", "Our ms")
CEILING = "Of a large bf16 product"
MEMORY = ("Tokens", "Model loaded, MB", "Peak of the scan, MB", "Moments, MB")


def report(results: dict[str, Any], brief: str | None = None) -> str:
    """Return the machine, one row for each peer of a benchmark, peers that were left out, and the memory of a scan.

    Args:
        results: content of the file that pytest-benchmark wrote.
        brief: a regular expression. Only rows whose case matches are printed, and nothing after them.
    """
    benchmarks = [benchmark["extra_info"] for benchmark in results["benchmarks"]]
    if brief is not None:
        benchmarks = [info for info in benchmarks if "peers" in info and re.search(brief, info["case"])]
    machine = results["machine_info"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    ceiling = next((info["ceiling_gflops"] for info in benchmarks if "ceiling_gflops" in info), None)
    columns = (*COLUMNS, CEILING) if ceiling else COLUMNS
    rows = [row for info in benchmarks if "peers" in info for row in _rows(info, ceiling)]
    loads = [info["load"] for info in benchmarks if "load" in info]
    load = f" Load average {min(loads):.1f} to {max(loads):.1f}." if loads else ""
    lines = [f"{machine['device']}; {versions}.{load}", "", _line(columns), _line(["---"] * len(columns))]
    lines += map(_line, rows)
    if brief is not None:
        return "\n".join(lines)
    if ceiling:
        lines.append(f"\nThe large bf16 product of this run: {ceiling:.0f} GFLOP/s.")
    for info in benchmarks:
        if "sweep" in info:
            lines += ["", f"{info['name']}:", "", *_sweep(info["sweep"])]
    left_out = [f"* {info['case']}: {peer} left out: {why}" for info in benchmarks for peer, why in _left_out(info)]
    memory = [_line(row) for info in benchmarks for row in _memory(info)]
    peaks = [f"* {info['task']}: peak of memory, MB: {_peaks(info)}" for info in benchmarks if "peaks_mb" in info]
    if left_out:
        lines += ["", *left_out]
    if peaks:
        lines += ["", *peaks]
    if memory:
        lines += ["", _line(MEMORY), _line(["---"] * len(MEMORY)), *memory]
    return "\n".join(lines)


def _rows(info: dict[str, Any], ceiling: float | None) -> Iterator[list[str]]:
    for name, peer in info["peers"].items():
        low, high = peer["iqr"]
        ratio = f"{peer['ratio']:.2f} [{low:.2f}, {high:.2f}]"
        if peer["ratio"] < 1:
            ratio += f": {1 / peer['ratio']:.2f} times its time"
        error = "–" if peer["error"] is None else f"{peer['error']:.1e}"
        if peer["passes"] is False:
            error += " (misses the gate)"
        rate = "–" if info["gflops"] is None else f"{info['gflops']:.0f}"
        milliseconds = f"{1000 * info['seconds']:.0f}"
        row = [info["task"], info["case"], name, ratio, f"{info['error']:.1e}", error, rate, milliseconds]
        if ceiling:
            row.append("–" if info["gflops"] is None else f"{info['gflops'] / ceiling:.0%}")
        yield row


def _sweep(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield _line(rows[0])
    yield _line(["---"] * len(rows[0]))
    for row in rows:
        yield _line(f"{cell:.2e}" if isinstance(cell, float) else str(cell) for cell in row.values())


def _left_out(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from info.get("left_out", {}).items()


def _peaks(info: dict[str, Any]) -> str:
    return ", ".join(f"{name} {peak:.0f}" for name, peak in info["peaks_mb"].items())


def _memory(info: dict[str, Any]) -> Iterator[list[str]]:
    for run in info.get("memory", []):
        yield [str(run["tokens"]), *(f"{run[name]:.0f}" for name in ("loaded_mb", "peak_mb", "moments_mb"))]


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--brief", metavar="PATTERN")
    arguments = parser.parse_args()
    print(report(json.loads(arguments.file.read_text()), arguments.brief))
