"""Documents and rows, read from strings, files and datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fastprobe.errors import InputError

PIECE = 1 << 16
"""Characters of a text file that are tokenised at a time. A piece ends at the end of a line."""


def documents(text: Any, column: str = "text") -> Iterator[Iterable[str]]:
    """Yield the documents of a text, each as consecutive pieces.

    Args:
        text: a string, a row (``dict``), a ``Path``, or an iterable of those.
        column: the column of a row that holds its text.

    Raises:
        InputError: a file cannot be read, or a row has no text in that column.
    """
    if isinstance(text, str):
        yield [text]
    elif isinstance(text, dict):
        yield [_text_of(text, column, "a row")]
    elif isinstance(text, Path):
        yield from _documents_of_file(text, column)
    else:
        for item in text:
            yield from documents(item, column)


def rows(source: Any) -> Iterator[tuple[Any, str]]:
    """Yield the rows of ``.jsonl`` files and datasets, each with its place for error messages.

    Raises:
        InputError: a file is not ``.jsonl``, or a line is not JSON.
    """
    if isinstance(source, Path):
        if source.suffix != ".jsonl":
            raise InputError(f"{source}: it has no rows; pass a .jsonl file")
        for number, line in enumerate(_lines(source), 1):
            if line.strip():
                place = f"{source}, line {number}"
                yield _parse_json(line, place), place
        return
    for number, row in enumerate(source, 1):
        if isinstance(row, Path):
            yield from rows(row)
        else:
            yield row, f"row {number}"


def _documents_of_file(path: Path, column: str) -> Iterator[Iterable[str]]:
    if path.suffix != ".jsonl":
        yield _pieces(_lines(path))
        return
    for row, place in rows(path):
        yield [_text_of(row, column, place)]


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}); convert it first, e.g. with iconv") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= PIECE:
            yield "".join(piece)
            piece, size = [], 0
    yield "".join(piece)


def _parse_json(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON ({error})") from None


def _text_of(row: Any, column: str, place: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        have = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise InputError(f"{place}: no text in column {column!r} (it has {have}); name one with --text-column")
    return row[column]
