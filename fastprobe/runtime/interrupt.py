"""Delay of Ctrl-C while a step must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """Delay a first Ctrl-C until the block ends. A second one interrupts at once. Blocks may be nested.

    Does nothing outside the main thread, which alone receives signals.

    Yields:
        a list that is empty until a Ctrl-C waits.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:  # C's handler cannot be put back
        yield pressed
        return

    def hold(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, hold)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)  # a block around this one may delay it further
