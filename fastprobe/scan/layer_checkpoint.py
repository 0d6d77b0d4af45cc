"""Finished rows and states of a scan layer by layer on disk, from which ``--resume`` goes on with the next layer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastprobe.runtime.distributed import Ranks
from fastprobe.runtime.journal import Journal
from fastprobe.scan.checkpoint import ROWS, STATES, Checkpoint
from fastprobe.scan.state_store import StateStore
from fastprobe.scan.state_stream import StateStream


class LayerCheckpoint:
    """Files of a scan layer by layer: each row when its layer is done, and at intervals the states of a depth.

    A scan that is killed loses the layer in hand. Where no states were saved, or those of another number of processes,
    the layers before run again on all tokens, without sums. Of several processes the first one writes the rows, and
    each one a folder of its own with its states.

    Args:
        checkpoint: folder, source, and whether to resume.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.folder, self._interval = checkpoint.folder, checkpoint.interval
        self._ranks = Ranks.here()
        self._ranks.agree("checkpoint", self.folder is None, "give one to every process; the first writes it")
        resume = self._ranks.from_first(
            lambda: checkpoint.resuming and self.folder is not None and (self.folder / ROWS).exists()
        )
        self._suffix = "" if self._ranks.size == 1 else f"-{self._ranks.rank}-of-{self._ranks.size}"
        self._journal = Journal(self.folder, checkpoint.source, resume=resume, file=ROWS)
        self._resuming = resume
        self._saved_at = time.monotonic()
        self.rows: dict[int, dict[str, Any]] = {}
        """Finished rows by their number in the scan."""

    @contextmanager
    def keeping(self, config: Mapping[str, Any]) -> Iterator[None]:
        """Open the files for the time of a block.

        Args:
            config: what the rows depend on.

        Raises:
            InputError: the folder holds the rows of another configuration; the message names what differs.
        """
        with self._journal.keeping(dict(config)):
            self.rows.update(self._journal.finished(0))
            if not self._resuming:
                self._delete(self._folders("states-*"))
            yield
            if not self._ranks.is_first:  # which may be on another machine, and deletes its own when all is saved
                self._delete(self._mine())

    def add(self, number: int, row: dict[str, Any]) -> None:
        """Keep a finished row."""
        self.rows[number] = row
        self._journal.add(0, number, row)

    def saved_depth(self, last: int) -> int:
        """Return the greatest depth whose states are saved in all processes, 0 if none is up to ``last``."""
        if not self._resuming:
            return 0
        depths = {int(path.name.split("-")[1]) for path in self._mine()}
        in_all = set.intersection(*self._ranks.gather(depths))
        return max((depth for depth in in_all if depth <= last), default=0)

    def restore(self, streams: Sequence[StateStream], depth: int) -> None:
        """Load the states of a saved depth into some streams."""
        for stream in streams:
            stream.restore(depth, self._states(depth))

    def save(self, streams: Sequence[StateStream], store: StateStore) -> None:
        """Save the states of the present depth if the last save was long enough ago. An older depth is deleted then.

        A collective call. The older depth is deleted when all processes have saved the new one.
        """
        if self.folder is None or not self._ranks.from_first(self._is_due):
            return
        start = time.monotonic()
        final = self._states(streams[0].depth)
        partial = final.with_name(f".{final.name}")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        try:
            for stream in streams:
                store.save(stream.keys(), partial)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._ranks.gather(None)
        self._delete(path for path in self._mine() if path != final)
        self._saved_at = time.monotonic()
        self._interval = max(self._interval, 20 * (self._saved_at - start))

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved_at >= self._interval

    def _states(self, depth: int) -> Path:
        """Return the folder of this process for the states of a depth."""
        assert self.folder is not None
        return self.folder / f"{STATES.format(depth)}{self._suffix}"

    def _mine(self) -> list[Path]:
        """Return the folders with states of this process."""
        return self._folders(f"states-{'[0-9]' * 4}{self._suffix}")

    def _folders(self, pattern: str) -> list[Path]:
        return [path for path in self.folder.glob(pattern) if path.is_dir()] if self.folder is not None else []

    @staticmethod
    def _delete(folders: Iterable[Path]) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
