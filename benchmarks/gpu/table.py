"""Markdown table of a run on a GPU: ``python -m benchmarks.gpu.table FOLDER``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import merged

COLUMNS = (
    "Task",
    "Case",
    "Contestant",
    "ms",
    "wall ms",
    "graph ms",
    "GFLOP/s",
    "of ceiling",
    "times ours",
    "error",
    "gate",
)
OURS = ("cuda", "triton", "ours", "scan", "auto", "one launch", "default")
"""Contestants that are ours. The fastest of them in a case is what the others are compared with."""


def table(folder: Path) -> str:
    """Return the machine, all rows and the notes of a run."""
    about = json.loads((folder / "machine.json").read_text())
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [f"{about['device']}; Python {about['python']}, {versions}; commit {about['commit'][:12]}.", ""]
    files = sorted((folder / "rows").glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    rows = [row for path in files for row in merged(iter(path.read_text().splitlines()))]
    ceiling = next((row["gflops"] for row in rows if row["task"] == "ceiling" and row.get("gflops")), None)
    timed = [row for row in rows if "ms" in row or "failed" in row]
    lines += [_line(COLUMNS), _line(["---"] * len(COLUMNS)), *(_line(_cells(row, rows, ceiling)) for row in timed)]
    others = [row for row in rows if row not in timed]
    for task in dict.fromkeys(row["task"] for row in others):
        lines += ["", f"{task}:", ""]
        lines += [f"* {row['case']}, {row['contestant']}: {_rest(row)}" for row in others if row["task"] == task]
    notes = folder / "notes.txt"
    if notes.exists():
        lines += ["", "Notes:", "", *(f"* {line}" for line in notes.read_text().splitlines())]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any], rows: Iterable[dict[str, Any]], ceiling: float | None) -> list[str]:
    if "ms" not in row:
        return [row["task"], row["case"], row["contestant"], f"failed: {row['failed']}", *7 * ["–"]]
    same = [other for other in rows if (other["task"], other["case"]) == (row["task"], row["case"])]
    best = min((other["ms"] for other in same if other["contestant"] in OURS and "ms" in other), default=None)
    rate = row.get("gflops")
    error = row.get("error")
    return [
        row["task"],
        row["case"],
        row["contestant"],
        f"{row['ms']:.3f}",
        f"{row['wall_ms']:.3f}" if "wall_ms" in row else "–",
        f"{row['graph_ms']:.3f}" if "graph_ms" in row else "–",
        f"{rate:.0f}" if rate else "–",
        f"{rate / ceiling:.0%}" if rate and ceiling else "–",
        f"{row['ms'] / best:.2f}" if best else "–",
        "–" if error is None else f"{error:.1e}" + ("" if row["passes"] else " (misses the gate)"),
        f"{row['gate']:.0e}" if row.get("gate") else "–",
    ]


def _rest(row: dict[str, Any]) -> str:
    found = {name: value for name, value in row.items() if name not in ("task", "case", "contestant")}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in found.items()
    )


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
