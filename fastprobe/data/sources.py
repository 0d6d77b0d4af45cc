"""Texts and token counts, read from what a user types."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastprobe.data.demo import demo_text
from fastprobe.data.formats import check_format
from fastprobe.errors import InputError


def load_text(files: Sequence[Path], dataset: str | None, split: str) -> tuple[Any, dict[str, Any]]:
    """Return a text for :func:`fastprobe.token_batches`, and its entry in the configuration of a result.

    Without files and dataset it is the demo text.

    Args:
        files: text files. They are read later, while batches are made.
        dataset: ``"name"`` or ``"name:configuration"`` for ``datasets.load_dataset``.
        split: split of the dataset.

    Raises:
        InputError: a file or a dataset is missing, a file is not plain text, or both are named.
    """
    if files and dataset:
        raise InputError("--text and --dataset: name one of them, not both")
    if files:
        for path in files:
            if not path.is_file():
                raise InputError(f"--text: {path} is not a file")
            check_format(path)
        return list(files), {"text": [f"{path} ({path.stat().st_size} bytes)" for path in files]}
    if dataset:
        try:
            from datasets import load_dataset
        except ImportError:
            raise InputError("--dataset: needs the package datasets; pip install 'fastprobe[data]'") from None
        name, _, configuration = dataset.partition(":")
        try:
            rows = load_dataset(name, configuration or None, split=split, streaming=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"--dataset: {dataset!r} could not be loaded: {str(error).splitlines()[0]}") from None
        return rows, {"text": [f"{dataset} ({split})"]}
    return list(demo_text().values()), {"text": ["pydoc_data.topics"]}


def parse_count(text: str) -> int:
    """Read a number of tokens: ``"100k"`` is 100000, ``"1.5M"`` is 1500000.

    Raises:
        InputError: the text is not such a number.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text.strip())
    if not match:
        raise InputError(f"tokens: must be a number like 5000, 100k or 1.5M, got {text!r}")
    return int(float(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2].lower()])
