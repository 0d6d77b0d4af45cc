"""Tables of kernel throughput and of tuned configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from fastprobe.results.table import empty_table, number_columns, text_columns


def bench_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with one line a kernel, width, dtype and instruction set."""
    table = empty_table()
    text_columns(table, "operation", "width", "dtype", "instructions")
    number_columns(table, "GF/s", "peak", "of peak", "x torch", "error")
    for row in rows:
        table.add_row(
            row["operation"],
            str(row["width"]),
            row["dtype"],
            row["instruction_set"],
            f"{row['gflops']:.0f}",
            f"{row['peak_gflops']:.0f}",
            f"{row['of_peak']:.2f}",
            f"{row['times_torch']:.2f}",
            f"{row['error']:.0e}",
        )
    return table


def tuning_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with one line a kernel, dtype and class of shapes."""
    table = empty_table()
    text_columns(table, "kernel")
    number_columns(table, "rows", "width", "x default")
    table.add_column("configuration")
    for row in rows:
        gain = f"{row['times_default']:.2f}"
        table.add_row(row["kernel"], str(row["rows"]), str(row["width"]), gain, row["configuration"])
    return table
