"""Commands in several processes of ``torchrun``: those that can share their work, and what the others print."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from fastprobe.errors import InputError
from fastprobe.runtime.distributed import launched, process_group, together

SHARED = ("linearity", "permute", "commutator", "ablate", "probe", "paper")
"""Commands whose processes share their work."""


@contextmanager
def processes() -> Iterator[None]:
    """Run a command in all processes that ``torchrun`` has started. Only the first one prints.

    An error of one process ends all of them with that error.
    """
    with process_group(), _silent(is_first_process()), together():
        yield


def check_shared(command: str | None) -> None:
    """Raise if several processes would all do the work of a command and write the same files.

    Raises:
        InputError: ``torchrun`` has started several processes, and the command cannot share its work.
    """
    if launched() and command not in SHARED:
        raise InputError(
            f"torchrun: {command} runs in one process, got {os.environ['WORLD_SIZE']}; start it without torchrun "
            f"(with it: {', '.join(SHARED)})"
        )


def is_first_process() -> bool:
    """Return True in the process that prints and writes files."""
    return not launched() or os.environ["RANK"] == "0"


@contextmanager
def _silent(prints: bool) -> Iterator[None]:
    """Drop what the block prints, unless ``prints``."""
    if prints:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
