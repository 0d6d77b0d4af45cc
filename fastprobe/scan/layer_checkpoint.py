"""Finished rows and states of a scan layer by layer on disk, from which ``--resume`` goes on with the next layer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastprobe.runtime.journal import Journal
from fastprobe.scan.checkpoint import ROWS, STATES, Checkpoint
from fastprobe.scan.state_store import StateStore
from fastprobe.scan.state_stream import StateStream


class LayerCheckpoint:
    """Files of a scan layer by layer: each row when its layer is done, and at intervals the states of a depth.

    A scan that is killed loses the layer in hand. Where no states were saved, the layers before run again on all
    tokens, without sums.

    Args:
        checkpoint: folder, source, and whether to resume.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.folder, self._interval = checkpoint.folder, checkpoint.interval
        resume = checkpoint.resuming and self.folder is not None and (self.folder / ROWS).exists()
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
                self._delete_states()
            yield

    def add(self, number: int, row: dict[str, Any]) -> None:
        """Keep a finished row."""
        self.rows[number] = row
        self._journal.add(0, number, row)

    def saved_depth(self, last: int) -> int:
        """Return the greatest depth whose states are saved, 0 if none is up to ``last``."""
        if not self._resuming or self.folder is None:
            return 0
        depths = [int(path.name.rpartition("-")[2]) for path in self.folder.glob("states-*") if path.is_dir()]
        return max((depth for depth in depths if depth <= last), default=0)

    def restore(self, streams: Sequence[StateStream], depth: int) -> None:
        """Load the states of a saved depth into some streams."""
        assert self.folder is not None
        for stream in streams:
            stream.restore(depth, self.folder / STATES.format(depth))

    def save(self, streams: Sequence[StateStream], store: StateStore) -> None:
        """Save the states of the present depth if the last save was long enough ago. An older depth is deleted then."""
        if self.folder is None or time.monotonic() - self._saved_at < self._interval:
            return
        start = time.monotonic()
        final = self.folder / STATES.format(streams[0].depth)
        partial = final.with_name(f".{final.name}")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        try:
            for stream in streams:
                store.save(stream.keys(), partial)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._delete_states(but=final)
        self._saved_at = time.monotonic()
        self._interval = max(self._interval, 20 * (self._saved_at - start))

    def _delete_states(self, but: Path | None = None) -> None:
        for path in self.folder.glob("states-*") if self.folder is not None else ():
            if path != but:
                shutil.rmtree(path, ignore_errors=True)
