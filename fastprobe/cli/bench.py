"""``bench``."""

from __future__ import annotations

import platform
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from fastprobe.bench import cpu as bench_cpu
from fastprobe.cli.app import app, dumps, stdout
from fastprobe.cli.options import Json, Quiet
from fastprobe.errors import InputError
from fastprobe.tables import bench_table


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="What to time: cpu, the C++ kernels.")] = "cpu",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """How close the kernels come to what this machine can do."""
    if name != "cpu":
        raise InputError(f"bench: {name!r} is not one of cpu")
    rows = list(tqdm(bench_cpu(), unit=" rows", leave=False, disable=quiet))
    if json:
        typer.echo(
            dumps(
                {"device": platform.processor() or platform.machine(), "threads": torch.get_num_threads(), "rows": rows}
            )
        )
    else:
        stdout.print(bench_table(rows))
