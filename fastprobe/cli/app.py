"""The application that commands register with, and the handling of their errors."""

from __future__ import annotations

import errno
import io
import json
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import huggingface_hub
import torch
import transformers
import typer
from rich.console import Console

import fastprobe as fp
from fastprobe.cli.processes import check_shared, prints, processes
from fastprobe.errors import FastprobeError, NumericalError, ProcessError
from fastprobe.runtime.distributed import launched

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
stdout = Console(soft_wrap=False)
VERSIONS = {"fastprobe": fp.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
INTERRUPTED = 130  # what Typer returns for Ctrl-C, and shells expect
OUTPUT_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM, errno.EDQUOT)
_UsageError: Any = typer.BadParameter.__base__  # Typer has its own copy of click, which it does not export


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(fp.__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    check_shared(context.invoked_subcommand)


_resumable: list[Path] = []


def register_resumable(path: Path) -> None:
    """Register a file that ``--resume`` reads. The message of an interrupted command names it if it exists."""
    _resumable.append(path)


def note(text: str) -> None:
    """Print a remark to standard error, apart from the result. Of several processes the first one prints it."""
    if prints():
        typer.echo(text, err=True)


def made_by() -> dict[str, Any]:
    """Return the entries of a configuration that say what made a result: the command and the versions."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    start = ["torchrun", "--nproc-per-node", count, "-m"] if launched() else []
    return {"command": shlex.join([*start, "fastprobe", *sys.argv[1:]]), "versions": VERSIONS}


def dumps(document: Any) -> str:
    """Return the JSON document that ``--json`` prints."""
    return json.dumps(document, indent=1)


def main() -> None:
    """Run a command. An expected failure prints one line to standard error and sets the exit code."""
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"  # one line, without the line of code
    _resumable.clear()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the terminal may not have every character of a table or a file name
            stream.reconfigure(errors="replace")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # no line for each retry; the last failure is an error
    try:
        with processes():
            code = app(standalone_mode=False)
    except typer.Abort:
        code = INTERRUPTED
    except ProcessError as error:  # the first process may be the one that ended
        typer.echo(f"fastprobe: {error}", err=True)
        code = 2
    except FastprobeError as error:
        note(f"fastprobe: {error}")
        code = 1 if isinstance(error, NumericalError) else 2
    except _UsageError as error:
        if prints():
            error.show()
        code = 2
    except OSError as error:
        if error.errno not in OUTPUT_ERRORS:
            raise
        unharmed = "no file is half written, and files that could not be replaced are unchanged"
        note(f"fastprobe: {error.filename or 'output'}: {error.strerror}; {unharmed}")
        code = 2
    if code == INTERRUPTED:
        kept = [path for path in _resumable if path.exists()]
        note(f"fastprobe: interrupted; {f'{kept[0]} is kept: continue with --resume' if kept else 'nothing was kept'}")
    sys.exit(code or 0)
