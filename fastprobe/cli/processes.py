"""Commands in several processes of ``torchrun``: those that can share their work, and the process that prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from fastprobe.errors import InputError
from fastprobe.runtime.distributed import launched, process_group, together

SHARED = ("linearity", "permute", "commutator", "ablate", "probe", "paper")
"""Commands whose processes share their work."""
TRAINING = "pretrain"
"""The command whose processes Transformers' Trainer starts and stops."""


@contextmanager
def processes() -> Iterator[None]:
    """Run a command in all processes that ``torchrun`` has started. Only the first one prints.

    An error of one process ends all of them with that error.
    """
    if not launched() or _command() not in SHARED:
        yield
        return
    with process_group(), _silent(prints()), together():
        yield


def check_shared(command: str | None) -> None:
    """Raise if several processes would all do the work of a command and write the same files.

    Raises:
        InputError: ``torchrun`` has started several processes, and the command cannot share its work.
    """
    if launched() and command not in (*SHARED, TRAINING):
        raise InputError(
            f"torchrun: {command} runs in one process, got {os.environ['WORLD_SIZE']}; start it without torchrun, "
            f"as all but {', '.join(SHARED)} and {TRAINING}"
        )


def prints() -> bool:
    """Return True in the process that prints and writes files."""
    return not launched() or os.environ["RANK"] == "0" or _command() == TRAINING


def _command() -> str:
    """Return the command that the user has typed."""
    return next((word for word in sys.argv[1:] if not word.startswith("-")), "")


@contextmanager
def _silent(shown: bool) -> Iterator[None]:
    """Drop what the block prints, unless ``shown``."""
    if shown:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
