"""Formats of text files, by the ends of their names."""

from __future__ import annotations

import re
from pathlib import Path

from fastprobe.errors import InputError

ROWS = (".jsonl", ".ndjson")
"""Files with one JSON object a line."""

TABLES = {".csv", ".tsv", ".parquet", ".arrow", ".feather", ".orc", ".xls", ".xlsx", ".ods", ".json"}
MARKUP = {".html", ".htm", ".xml", ".pdf", ".doc", ".docx", ".odt", ".epub", ".ipynb"}
PACKED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z"}
BINARY = {".pkl", ".npy", ".npz", ".pt", ".pth", ".bin", ".safetensors", ".db", ".sqlite"}


def has_rows(path: Path) -> bool:
    """Return whether a file holds one JSON object a line."""
    return path.suffix.lower() in ROWS


def check_format(path: Path) -> None:
    """Raise if a file is known to be something else than plain text or rows, by the end of its name.

    Raises:
        InputError: it is. The message says how to convert it.
    """
    suffix = path.suffix.lower()
    if suffix in TABLES:
        remedy = "write one JSON object a line to a .jsonl file, e.g. frame.to_json(path, orient='records', lines=True)"
    elif suffix in MARKUP:
        remedy = "convert it to a .txt file without markup"
    elif suffix in PACKED:
        remedy = "unpack it first"
    elif suffix in BINARY:
        remedy = "name a file of text"
    else:
        return
    raise InputError(f"{path}: a {suffix} file is not plain text; {remedy}")


def is_file_name(text: str) -> bool:
    """Return whether a text is nothing but the name of an existing file, such as ``corpus.txt``."""
    if len(text) > 255 or not re.search(r"\.\w{1,11}$", text):
        return False
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False
