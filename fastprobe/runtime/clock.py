"""Time of the parts of a run."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Clock:
    """Seconds of each part of a run. Parts nest: the time of an inner part does not count for the outer one.

    Args:
        device: a GPU is synchronised whenever the part changes, so that its work counts for the right part.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count the time of the block for a part."""
        self._switch()
        self._running.append(part)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def timed(self, part: str, items: Iterable[T]) -> Iterator[T]:
        """Yield items, and count the time that each takes to come for a part."""
        stream = iter(items)
        while True:
            with self(part):
                try:
                    item = next(stream)
                except StopIteration:
                    return
            yield item

    @property
    def rounded(self) -> dict[str, float]:
        """Seconds of each part, to the millisecond."""
        return {part: round(seconds, 3) for part, seconds in self.seconds.items()}

    def _switch(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._running:
            part = self._running[-1]
            self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now
