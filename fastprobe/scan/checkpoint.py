"""Moments on disk while a scan runs, and going on from them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastprobe.errors import InputError
from fastprobe.regression.moments import Moments
from fastprobe.runtime.interrupt import uninterrupted
from fastprobe.runtime.journal import OPTIONS

if TYPE_CHECKING:
    from fastprobe.scan.passes import MomentPass

FILE = "moments.safetensors"


class Checkpoint:
    """Keeps the moments of a scan in a folder: every so often, and on every way out.

    Args:
        folder: where ``moments.safetensors`` is kept; ``None`` keeps nothing.
        source: what is scanned (model, text, sizes), saved beside the moments and compared on resuming.
        resume: go on from what the folder holds, if it holds something.
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

    def resume(self, config: Mapping[str, Any], zero: Moments) -> tuple[Moments, int]:
        """The moments to start from and how many batches they hold.

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
        return moments, int(saved["batches_done"])

    @contextmanager
    def keeping(self, first_pass: MomentPass, config: Mapping[str, Any]) -> Iterator[None]:
        """Save on leaving the block, however it is left, and whenever :meth:`tick` finds it is time."""

        def save() -> None:
            if self.path is not None and first_pass.batches:
                done = {"batches_done": first_pass.batches, "sequences": first_pass.sequences}
                first_pass.moments.save(self.path, self.source | dict(config) | done)

        self._save = save
        try:
            yield
        finally:
            self._save = _nothing  # it holds the moments, and this object it
            with uninterrupted():  # an impatient second Ctrl-C must not lose what the first was to keep
                save()

    def tick(self) -> None:
        """Save if the last save was long enough ago. Called between batches."""
        if self.path is None or time.monotonic() - self._saved_at < self.interval:
            return
        start = time.monotonic()
        self._save()
        self._saved_at = time.monotonic()
        self.interval = max(self.interval, 20 * (self._saved_at - start))


def _nothing() -> None:
    """There is nothing to keep."""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
