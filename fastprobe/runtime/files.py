"""Files that are replaced whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastprobe.errors import InputError


def make_folder(path: str | Path) -> Path:
    """A folder, made with those above it where it is not there.

    Raises:
        InputError: the system refuses.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: the folder {path} cannot be made: {error.strerror}") from None
    return Path(path)


def check_folder(path: str | Path) -> None:
    """That :func:`make_folder` could make a folder, which it does not do yet.

    Raises:
        InputError: it could not.
    """
    nearest = next(place for place in (Path(path), *Path(path).absolute().parents) if os.path.exists(place))
    if not nearest.is_dir():
        why = os.strerror(errno.EEXIST if nearest == Path(path) else errno.ENOTDIR)
    elif not os.access(nearest, os.W_OK):
        why = os.strerror(errno.EACCES)
    else:
        return
    raise InputError(f"out: the folder {path} cannot be made: {why}")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write to that takes the place of ``path`` when the block ends well, and vanishes when it does not.

    Raises:
        InputError: its folder cannot be made.
        OSError: the system refuses; it names ``path``.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # of a new file here; some libraries write ones that only their owner may read
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
    """Replace the text of a file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
