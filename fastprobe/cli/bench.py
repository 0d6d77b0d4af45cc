"""``fastprobe bench``."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from tqdm import tqdm

from fastprobe.benchmarking.configurations import tune
from fastprobe.benchmarking.processor import cpu as bench_cpu
from fastprobe.benchmarking.table import bench_table, tuning_table
from fastprobe.cli.app import app, dumps, stdout
from fastprobe.cli.options import Json, Quiet
from fastprobe.errors import InputError


@app.command()
def bench(
    name: Annotated[
        str,
        typer.Argument(help="cpu: time the C++ kernels; tune: find and keep configurations of the Triton kernels."),
    ] = "cpu",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time the kernels and compare them with the limits of this machine."""
    measured, table = _choices().get(name, (None, None))
    if measured is None or table is None:
        raise InputError(f"bench: {name!r} is not one of {', '.join(_choices())}")
    rows = list(tqdm(measured(), unit=" rows", leave=False, disable=quiet))
    if json:
        device = torch.cuda.get_device_name() if name == "tune" else platform.processor() or platform.machine()
        typer.echo(dumps({"device": device, "threads": torch.get_num_threads(), "rows": rows}))
    else:
        stdout.print(table(rows))


def _choices() -> dict[str, tuple[Callable[[], Iterator[dict[str, Any]]], Callable[[list[dict[str, Any]]], Table]]]:
    """Return for each benchmark the function that yields its rows, and the one that makes their table."""
    return {"cpu": (bench_cpu, bench_table), "tune": (tune, tuning_table)}
