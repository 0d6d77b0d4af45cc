"""What a long run has finished, one line at a time, so that a killed one goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from fastprobe.errors import InputError
from fastprobe.runtime.files import write_text

FILE = "orders.jsonl"


OPTIONS = {"token_budget": "tokens", "model_dtype": "dtype"}
"""What a configuration has under another name than the user typed."""


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What is not alike in two configurations, by the names that a user types; nothing where all is."""
    other = [key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
    return ", ".join(OPTIONS.get(key, key) for key in other)


class Journal:
    """Finished orders by batch, in a file of JSON lines, or nowhere.

    Args:
        folder: where the file lies; ``None`` keeps nothing.
        origin: what else must be alike in a run that goes on with it.
        resume: go on with the file that is there.
    """

    def __init__(self, folder: str | Path | None = None, origin: dict[str, Any] | None = None, *, resume: bool = False):
        self._path = None if folder is None else Path(folder) / FILE
        self._origin, self._resume = origin or {}, resume
        self._done: dict[int, dict[int, Any]] = {}
        self._file: TextIO | None = None

    @contextmanager
    def keeping(self, config: dict[str, Any]) -> Iterator[None]:
        """The file, open, for a run of this configuration.

        Raises:
            InputError: the file to go on with is of another configuration, or there is none.
        """
        if self._path is None:
            yield
            return
        head = json.dumps(self._origin | config, sort_keys=True)
        lines = self._lines(head) if self._resume else [head]
        write_text(self._path, "".join(f"{line}\n" for line in lines))  # whole, or a kill now would lose what is kept
        with self._path.open("a", encoding="utf-8") as self._file:
            yield

    def finished(self, batch: int) -> dict[int, Any]:
        """What was kept of a batch: order -> its sums."""
        return self._done.get(batch, {})

    def add(self, batch: int, order: int, sums: Any) -> None:
        """Keep one more order of a batch."""
        if self._file is not None:
            self._file.write(json.dumps([batch, order, sums]) + "\n")
            self._file.flush()

    def _lines(self, head: str) -> list[str]:
        assert self._path is not None
        try:
            first, *lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            raise InputError(f"--resume: there is no {self._path} to go on with; leave it out to start anew") from None
        if first != head:
            mine, theirs = json.loads(head), json.loads(first)
            raise InputError(
                f"--resume: {self._path} is of a run with another {differing(mine, theirs)}; start anew in a new folder"
            )
        kept = [first]
        for line in lines:
            try:
                batch, order, sums = json.loads(line)
            except ValueError:
                break  # cut off while it was written
            self._done.setdefault(batch, {})[order] = sums
            kept.append(line)
        return kept
