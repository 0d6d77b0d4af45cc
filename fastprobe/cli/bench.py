"""``bench``."""

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
        str, typer.Argument(help="cpu: the C++ kernels; tune: the Triton kernels' configurations, kept for later runs.")
    ] = "cpu",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How close the kernels come to what this machine can do."""
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
    """What can be timed: the rows, and the table of them."""
    return {"cpu": (bench_cpu, bench_table), "tune": (tune, tuning_table)}
