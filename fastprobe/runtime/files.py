"""Folders, and files that are replaced whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastprobe.errors import InputError


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents unless they exist, and return its path.

    Raises:
        InputError: the system refuses.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: the folder {path} cannot be made: {error.strerror}") from None
    return Path(path)


def check_folder(path: str | Path) -> None:
    """Raise if :func:`make_folder` could not make a folder. Makes nothing.

    Raises:
        InputError: it could not; the message says why.
    """
    nearest = next(place for place in (Path(path), *Path(path).absolute().parents) if os.path.exists(place))
    if not nearest.is_dir():
        reason = os.strerror(errno.EEXIST if nearest == Path(path) else errno.ENOTDIR)
    elif not os.access(nearest, os.W_OK):
        reason = os.strerror(errno.EACCES)
    else:
        return
    raise InputError(f"out: the folder {path} cannot be made: {reason}")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` if the block succeeds, and is deleted if it fails.

    Raises:
        InputError: the folder of ``path`` cannot be made.
        OSError: the system refuses; the error names ``path``.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # of a new file here; some libraries let only the owner read
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    except OSError as error:
        if not error.errno:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file. It is replaced whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
