"""Documents and rows, read from strings, files and datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fastprobe.data.formats import check_format, has_rows, is_file_name
from fastprobe.errors import InputError

PIECE = 1 << 16
"""Characters of a text file that are tokenised at a time. A piece ends at the end of a line."""


def documents(text: Any, column: str = "text") -> Iterator[Iterable[str]]:
    """Yield the documents of a text, each as consecutive pieces.

    Args:
        text: a string, a row (``dict``), a ``Path``, a table (pandas, polars, Arrow), or an iterable of those.
        column: the column of a row or a table that holds its text.

    Raises:
        InputError: a file cannot be read, a row or a table has no text in that column, or something is not text.
    """
    if isinstance(text, str):
        if is_file_name(text):
            raise InputError(f"text: {text!r} is the name of a file; pass Path({text!r})")
        yield [checked_text(text, "text")]
    elif isinstance(text, Mapping):
        yield [_text_of(text, column, "a row")]
    elif isinstance(text, Path):
        yield from _documents_of_file(text, column)
    else:
        for item in _items(text, column):
            yield from documents(item, column)


def checked_text(text: str, place: str) -> str:
    """Return a text if it has no lone surrogates, which no tokenizer can encode.

    Raises:
        InputError: it has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: character {error.start} is the lone surrogate {text[error.start]!r}, half of a character; "
            "repair the text, e.g. with text.encode('utf-8', 'replace').decode()"
        ) from None
    return text


def _items(text: Any, column: str) -> Iterable[Any]:
    """Return the items of an iterable, and of a table those of its column.

    Raises:
        InputError: it is neither, or the table has no such column.
    """
    if hasattr(text, "to_pylist"):  # an Arrow table or array
        return text.to_pylist()
    if hasattr(text, "columns"):  # a data frame; iterating it gives the names of its columns
        names = list(text.columns)
        if column not in names:
            have = ", ".join(map(str, names))
            raise InputError(f"text: no text in column {column!r} (it has {have}); name one with text_column=")
        text = text[column]
    try:
        if not isinstance(text, bytes | bytearray):
            return iter(text)
    except TypeError:
        pass
    raise InputError(
        f"text: must be strings, rows, files or a table, got {type(text).__name__} ({str(text)[:40]!r}); leave it out "
        "or convert it to a string"
    )


def rows(source: Any) -> Iterator[tuple[Any, str]]:
    """Yield the rows of ``.jsonl`` files and datasets, each with its place for error messages.

    Raises:
        InputError: a file is not ``.jsonl``, or a line is not JSON.
    """
    if isinstance(source, Path):
        if not has_rows(source):
            raise InputError(f"{source}: it has no rows; pass a .jsonl file")
        for number, line in enumerate(_lines(source), 1):
            if line.strip():
                place = f"{source}, line {number}"
                yield _parse_json(line, place), place
        return
    if hasattr(source, "to_pylist"):  # an Arrow table
        source = source.to_pylist()
    elif hasattr(source, "columns") and hasattr(source, "to_dict"):  # a data frame of pandas
        source = source.to_dict("records")
    for number, row in enumerate(source, 1):
        if isinstance(row, Path):
            yield from rows(row)
        else:
            yield row, f"row {number}"


def _documents_of_file(path: Path, column: str) -> Iterator[Iterable[str]]:
    check_format(path)
    if not has_rows(path):
        yield _pieces(_lines(path))
        return
    for row, place in rows(path):
        yield [_text_of(row, column, place)]


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise InputError(f"{path}, line {number}: a zero byte, so this is not a file of text")
                yield line
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
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error})") from None


def _text_of(row: Any, column: str, place: str) -> str:
    if not isinstance(row, Mapping) or not isinstance(row.get(column), str):
        have = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        if isinstance(row, Mapping) and column in row:
            have = f"a value of {type(row[column]).__name__}"
        raise InputError(f"{place}: no text in column {column!r} (it has {have}); name one with --text-column")
    return checked_text(row[column], place)
