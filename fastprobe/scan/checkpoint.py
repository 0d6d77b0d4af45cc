"""Save the moments of a scan to disk while it runs, and resume from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastprobe.errors import InputError
from fastprobe.regression.moments import Moments
from fastprobe.runtime.interrupt import uninterrupted
from fastprobe.runtime.journal import OPTIONS
from fastprobe.scan.moment_pass import MomentPass

FILE = "moments.safetensors"


class Checkpoint:
    """The moments of a scan in a folder, saved at intervals and when the scan ends or stops.

    The file holds whole batches only. A scan that fails in the middle of a batch leaves the file of the last interval.
    Each save replaces the file whole or not at all, so a kill or a full disk leaves the one before.

    A resumed scan adds the same batches in the same order as an uninterrupted one. On the same machine its moments and
    scores are therefore equal to the last bit.

    Args:
        folder: where ``moments.safetensors`` is written; ``None`` saves nothing.
        source: the model, text and sizes of the scan, saved with the moments and compared on resuming.
        resume: start from the moments in the folder, if there are any.
        interval: seconds between two saves; longer where a save takes over a twentieth of that.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        source: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
        interval: float = 60.0,
    ):
        self.path = None if folder is None else Path(folder) / FILE
        self.source = dict(source or {})
        self.resuming = resume
        self.interval = interval
        self._saved_at = time.monotonic()
        self._save: Callable[[], None] = _nothing
        self._read = ""  # hash of the batches that the moments in the folder hold

    def resume(self, config: Mapping[str, Any], zero: Moments) -> tuple[Moments, int]:
        """Return the moments to start from, and the number of batches that they hold.

        Raises:
            InputError: the folder holds the moments of another configuration; the message names what differs.
        """
        if not self.resuming or self.path is None or not self.path.exists():
            return zero, 0
        moments, saved = Moments.load(self.path, zero.counts.device)
        for key, value in (self.source | dict(config)).items():
            if saved.get(key) != value:
                name = OPTIONS.get(key, key)
                raise InputError(
                    f"--resume: {self.path.parent} holds a run with {name}={_short(saved.get(key))}, this one has "
                    f"{name}={_short(value)}; use the same options or another --out"
                )
        self._read = saved.get("read", "")
        return moments, int(saved["batches_done"])

    def check_read(self, first_pass: MomentPass) -> None:
        """Raise an error if the batches that a pass has skipped are not those that the moments hold.

        Raises:
            InputError: they are others.
        """
        if self._read and self._read != first_pass.read:
            assert self.path is not None
            raise InputError(
                f"--resume: {self.path.parent} holds a run of other batches; use the same text and batch size, or "
                "another --out"
            )

    @contextmanager
    def keeping(self, first_pass: MomentPass, config: Mapping[str, Any]) -> Iterator[None]:
        """Save the moments of a pass on leaving the block, also by an error, and when :meth:`tick` finds it is time."""

        def save() -> None:
            if self.path is not None and first_pass.batches and first_pass.complete:
                done = {
                    "batches_done": first_pass.batches,
                    "sequences": first_pass.sequences,
                    "read": first_pass.read,
                }
                first_pass.moments.save(self.path, self.source | dict(config) | done)

        self._save = save
        try:
            yield
        finally:
            self._save = _nothing  # `save` refers to the moments: they are freed with the scan
            with uninterrupted():  # a second Ctrl-C during this save must not lose it
                save()

    def tick(self) -> None:
        """Save if the last save was long enough ago. Call it between batches."""
        if self.path is None or time.monotonic() - self._saved_at < self.interval:
            return
        start = time.monotonic()
        self._save()
        self._saved_at = time.monotonic()
        self.interval = max(self.interval, 20 * (self._saved_at - start))


def _nothing() -> None:
    """Save nothing."""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
