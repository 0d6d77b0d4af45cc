"""Progress bars on standard error."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm


class Bar(tqdm):
    """A progress bar that changes nothing outside itself.

    tqdm's own lock fixes the start method of ``multiprocessing``, and its monitor is a thread that stays.
    """

    monitor_interval = 0


Bar.set_lock(threading.RLock())


class OrderProgress:
    """A bar over tokens, with the finished orders and the layer runs beside it.

    A token counts in full when all orders have run it. Each layer run advances the bar by an equal share.

    Args:
        tokens: tokens of all batches, if known.
        orders: number of orders.
        show: show the bar.
        what: plural of what is counted, for the reader.
    """

    def __init__(self, tokens: int | None, orders: int, show: bool, what: str = "orders"):
        self._bar: Any = Bar(total=tokens, unit=" tokens", unit_scale=True, disable=not show)
        self._orders, self._what, self._finished, self._share = orders, what, 0, 0.0
        self._tokens = self._shown = 0.0
        self.layer_runs = 0

    def __enter__(self) -> OrderProgress:
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, at)

    def batch(self, tokens: int, finished: int, layer_runs: int) -> None:
        """Start a batch.

        Args:
            tokens: tokens of the batch.
            finished: orders that a resumed run has finished already.
            layer_runs: layer runs that the other orders take.
        """
        done = tokens * finished / self._orders
        self._finished, self._share = finished, (tokens - done) / max(1, layer_runs)
        self._advance(done)

    def ran(self, layers: int) -> None:
        """Count layer runs."""
        self.layer_runs += layers
        self._refresh()
        self._advance(layers * self._share)

    def finished(self) -> None:
        """Count an order that is finished with this batch, and show the count at once if the bar stood still."""
        self._finished += 1
        self._refresh()
        if not self._bar.disable and time.monotonic() - self._shown >= self._bar.mininterval:
            self._bar.refresh()
            self._shown = time.monotonic()

    def _advance(self, tokens: float) -> None:
        self._tokens += tokens
        self._bar.update(round(self._tokens) - self._bar.n)

    def _refresh(self) -> None:
        text = f"{self._finished}/{self._orders} {self._what}, {self.layer_runs:,} layer runs"
        self._bar.set_postfix_str(text, refresh=False)


class PassProgress:
    """A named bar for each pass of a run, one after another.

    Args:
        show: show the bars.
    """

    def __init__(self, show: bool):
        self._show = show
        self._bar: Any = None

    def __enter__(self) -> PassProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def begin(self, what: str, total: int | None, unit: str) -> None:
        """Start a pass, and finish the one before.

        Args:
            what: name of the pass.
            total: number of units, if known.
            unit: name of the units, like ``"tokens"``.
        """
        self._close()
        scaled = unit == "tokens"  # show thousands and millions
        self._bar = Bar(desc=what, total=total, unit=f" {unit}", unit_scale=scaled, disable=not self._show)

    def ran(self, count: int) -> None:
        """Count finished units."""
        self._bar.update(count)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
