"""Journal of a long run: the finished orders, for a killed run to resume from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from fastprobe.errors import InputError
from fastprobe.runtime.distributed import Ranks
from fastprobe.runtime.files import write_text

FILE = "orders.jsonl"
OPTIONS = {"token_budget": "tokens", "model_dtype": "dtype", "first_token_mask": "token_mask"}
"""Entries of a configuration whose option has another name: entry -> option."""

WEIGHTS = "weights"
"""Entry of a configuration for the weights of the model. Files of version 0.1.0 have none, and resume with any."""


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Return the names of the options that differ between two configurations, joined by commas."""
    keys = [key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
    return ", ".join(OPTIONS.get(key, key) for key in keys)


class Journal:
    """Sums of the finished orders of each batch, in a file of JSON lines.

    Args:
        folder: folder of the file; ``None`` writes no file.
        origin: entries of the configuration, besides those of :meth:`keeping`, that must agree when a run resumes.
        resume: continue the file in the folder.
        file: name of the file.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        origin: dict[str, Any] | None = None,
        *,
        resume: bool = False,
        file: str = FILE,
    ):
        self._path = None if folder is None else Path(folder) / file
        self._origin, self._resume = origin or {}, resume
        self._done: dict[int, dict[int, Any]] = {}
        self._digests: dict[int, str] = {}  # of the batches of the interrupted run
        self._file: TextIO | None = None

    @property
    def writes(self) -> bool:
        """True if there is a file."""
        return self._path is not None

    @contextmanager
    def keeping(self, config: dict[str, Any]) -> Iterator[None]:
        """Open the file for the time of a block. Of several processes the first one reads and writes it.

        Args:
            config: configuration of the run.

        Raises:
            InputError: there is no file to resume from, or it belongs to another configuration.
        """
        ranks = Ranks.here()
        self._done = ranks.from_first(lambda: self._started(config))
        if self._path is None or not ranks.is_first:
            yield
            return
        with self._path.open("a", encoding="utf-8") as self._file:
            yield

    def finished(self, batch: int, digest: str = "") -> dict[int, Any]:
        """Return the sums of the finished orders of a batch, by order.

        Args:
            batch: its number.
            digest: a hash of its content.

        Raises:
            InputError: the interrupted run had another batch of this number.
        """
        if self._digests.get(batch, digest) != digest:
            raise InputError(
                f"--resume: {self._path} is of a run whose batch {batch} was another one; resume with the same "
                "batches, or start anew in a new folder"
            )
        return self._done.get(batch, {})

    def add(self, batch: int, order: int, sums: Any, digest: str = "") -> None:
        """Write the sums of one more order of a batch, unless the file has them."""
        if self._file is not None and order not in self._done.get(batch, {}):
            self._file.write(json.dumps([batch, order, sums, digest]) + "\n")
            self._file.flush()

    def _started(self, config: dict[str, Any]) -> dict[int, dict[int, Any]]:
        """Write the beginning of the file, and return the sums that it holds."""
        if self._path is not None:
            head = json.dumps(self._origin | config, sort_keys=True)
            lines = self._lines(head) if self._resume else [head]
            write_text(self._path, "".join(f"{line}\n" for line in lines))  # in one step, so that a kill loses nothing
        return self._done

    def _lines(self, head: str) -> list[str]:
        """Read the file, and return its lines up to the first that is not complete."""
        assert self._path is not None
        try:
            first, *lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            raise InputError(f"--resume: there is no {self._path} to resume from; leave it out to start anew") from None
        mine, theirs = json.loads(head), json.loads(first)
        if WEIGHTS in mine:
            theirs.setdefault(WEIGHTS, mine[WEIGHTS])
        if mine != theirs:
            raise InputError(
                f"--resume: {self._path} is of a run with another {differing(mine, theirs)}; start anew in a new folder"
            )
        kept = [head]
        for line in lines:
            try:
                batch, order, sums, *digest = json.loads(line)  # version 0.1.0 wrote no digest
            except ValueError:
                break  # the run was killed while it wrote this line
            self._done.setdefault(batch, {})[order] = sums
            if digest:
                self._digests[batch] = digest[0]
            kept.append(line)
        return kept
