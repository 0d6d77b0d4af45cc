"""Save the moments of a scan to disk while it runs, and resume from them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastprobe.errors import InputError
from fastprobe.regression.moments import Moments
from fastprobe.runtime.distributed import Ranks
from fastprobe.runtime.interrupt import uninterrupted
from fastprobe.runtime.journal import OPTIONS, WEIGHTS
from fastprobe.runtime.memory import human
from fastprobe.scan.moment_pass import MomentPass

FILE = "moments.safetensors"
ROWS = "layers.jsonl"
"""File of the finished rows of a scan layer by layer."""
BUDGET = "token_budget"
"""Entry of the source with the number of tokens to read."""
STATES = "states-{:04d}"
"""Folder of the states of a depth in a scan layer by layer."""


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
        keep: save the moments of a finished scan, too, for :func:`~fastprobe.scan.merging.merge_scans`, other scores
            and more tokens. Without it the file only serves to resume, and :meth:`finish` deletes it.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        source: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
        interval: float = 60.0,
        keep: bool = True,
    ):
        self.folder = None if folder is None else Path(folder)
        self.path = None if folder is None else Path(folder) / FILE
        self.keep = keep
        self.earlier_tokens: int | None = None
        self.tokens_before = 0
        self.source = dict(source or {})
        self.resuming = resume
        self.interval = interval
        self._saved_at = time.monotonic()
        self._save: Callable[[], None] = _nothing
        self._read: list[
            str
        ] = []  # hashes of the batches that the moments in the folder hold, without the last and all
        self._held = 0  # least number of batches that the moments to save must hold

    def resume(self, config: Mapping[str, Any], zero: Moments) -> tuple[Moments, int]:
        """Return the moments to start from, and the number of batches that they hold.

        A run with fewer tokens of the same text may be extended: ``earlier_tokens`` is then their number.
        ``tokens_before`` is that of the tokens before the last round that the moments hold.
        Of several processes the first one reads the moments, and the others start from moments of no rows.

        Raises:
            InputError: the folder holds the moments of another configuration; the message names what differs.
        """
        ranks = Ranks.here()
        ranks.agree("checkpoint", self.path is None, "give one to every process; the first writes it")
        moments, done = self._loaded(config, zero) if ranks.is_first else (zero, 0)
        moments.share_origins_()
        done, self.tokens_before = ranks.gather((done, self.tokens_before))[0]
        return moments, done

    def _loaded(self, config: Mapping[str, Any], zero: Moments) -> tuple[Moments, int]:
        if not self.resuming or self.path is None or not self.path.exists():
            return zero, 0
        moments, saved = Moments.load(self.path, zero.counts.device)
        for key, value in (self.source | dict(config)).items():
            if key == BUDGET and Ranks.here().size == 1 and value > saved.get(key, value):
                self.earlier_tokens = saved[key]
            elif saved.get(key) != value and not (key == WEIGHTS and key not in saved):
                name = OPTIONS.get(key, key)
                raise InputError(
                    f"--resume: {self.path.parent} holds a run with {name}={_short(saved.get(key))}, this one has "
                    f"{name}={_short(value)}; use the same options or another --out"
                )
        self._read, self._held = saved.get("read", []), int(saved["batches_done"])
        self.tokens_before = int(saved.get("tokens_before", 0))
        return moments, int(saved["batches_done"])

    def check_read(self, first_pass: MomentPass) -> None:
        """Raise an error if the batches that a pass has skipped are not those that the moments hold.

        To be called when all of them are skipped. Nothing is saved before, because the pass has not counted them.

        Raises:
            InputError: they are others.
        """
        read, self._read, self._held = self._read, [], 0
        if read and first_pass.read[1] not in read and Ranks.here().size == 1:
            assert self.path is not None
            first_pass.complete = False  # nothing is saved
            raise InputError(
                f"--resume: {self.path.parent} holds a run of other batches; use the same text and batch size, or "
                "another --out"
            )

    @contextmanager
    def keeping(self, first_pass: MomentPass, config: Mapping[str, Any]) -> Iterator[None]:
        """Save the moments of a pass on leaving the block, also by an error, and when :meth:`tick` finds it is time.

        After an error of one of several processes nothing is saved, because it takes all of them.
        """
        ranks = Ranks.here()

        def save() -> None:
            if self.path is None:
                return
            if ranks.size > 1:
                first_pass.moments.collect_()
            if first_pass.batches < self._held:  # not all batches that the moments hold are counted yet
                return
            if ranks.is_first and first_pass.batches and first_pass.complete:
                names = ("sequences", "tokens_before")
                done: dict[str, Any] = {"batches_done": first_pass.batches}
                done |= {name: getattr(first_pass, name) for name in names}
                if ranks.size == 1:
                    done["read"] = first_pass.read
                first_pass.moments.save(self.path, self.source | dict(config) | done)

        self._save, ended = save, False
        try:
            yield
            ended = True
        finally:
            self._save = _nothing  # `save` refers to the moments: they are freed with the scan
            if ended or ranks.size == 1:
                with uninterrupted():  # a second Ctrl-C during this save must not lose it
                    if not ended or self.keep or ranks.from_first(self._is_due):
                        save()

    def tick(self) -> None:
        """Save if the last save was long enough ago. Call it between batches."""
        if self.path is None or not Ranks.here().from_first(self._is_due):
            return
        start = time.monotonic()
        self._save()
        self._saved_at = time.monotonic()
        self.interval = max(self.interval, 20 * (self._saved_at - start))

    def announcement(self, nbytes: int) -> str:
        """Say in a clause when moments of a size are written, ``""`` if they are not."""
        if self.path is None:
            return ""
        when = f"every {self.interval:.0f} s for --resume" + (" and kept" if self.keep else ", deleted at the end")
        return f"; {self.path} ({human(nbytes)}) is written {when}"

    def finish(self) -> None:
        """Delete the files that only serve to resume. Call it when the result is saved."""
        if self.folder is None:
            return
        (self.folder / ROWS).unlink(missing_ok=True)
        for states in self.folder.glob(STATES.format(0).replace("0000", "*")):
            shutil.rmtree(states, ignore_errors=True)
        if not self.keep:
            (self.folder / FILE).unlink(missing_ok=True)

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.interval


def _nothing() -> None:
    """Save nothing."""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
