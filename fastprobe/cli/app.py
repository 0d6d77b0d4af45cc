"""The application that commands register with, and what becomes of their failures."""

from __future__ import annotations

import errno
import json
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
from fastprobe.errors import FastprobeError, NumericalError
from fastprobe.runtime.memory import keep_freed_memory

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
stdout = Console(soft_wrap=False)
VERSIONS = {"fastprobe": fp.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
INTERRUPTED = 130  # what Typer returns for Ctrl-C, and shells expect
_UsageError: Any = typer.BadParameter.__base__  # Typer carries its own copy of click, and hides it


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(fp.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


_kept: list[Path] = []


def keeps(path: Path) -> None:
    """Say where a command that can be gone on with keeps what it has done: an interrupted one then says so."""
    _kept.append(path)


def note(text: str) -> None:
    """Tell the user something that is not the result."""
    typer.echo(text, err=True)


def dumps(document: Any) -> str:
    """The JSON document that ``--json`` prints."""
    return json.dumps(document, indent=1)


def main() -> None:
    """Run a command; every expected failure is one line on standard error and an exit code."""
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"  # one line, without the line of code
    _kept.clear()
    keep_freed_memory()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity_error()  # of retries; what failed in the end is said in one line
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = INTERRUPTED
    except FastprobeError as error:
        note(f"fastprobe: {error}")
        code = 1 if isinstance(error, NumericalError) else 2
    except _UsageError as error:
        error.show()
        code = 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM, errno.EDQUOT):
            raise
        kept = "no file is half written, and those that could not be replaced are as they were"
        note(f"fastprobe: {error.filename or 'output'}: {error.strerror}; {kept}")
        code = 2
    if code == INTERRUPTED:
        there = [path for path in _kept if path.exists()]
        note(f"fastprobe: interrupted; {f'{there[0]} is kept: go on with --resume' if there else 'nothing was kept'}")
    sys.exit(code or 0)
