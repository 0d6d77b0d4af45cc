"""How far a run is, on standard error."""

from __future__ import annotations

import threading
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
    """A bar over tokens, each of which counts when all orders are through with it; beside it orders and layer runs.

    Args:
        tokens: of all batches, if that is known.
        orders: how many there are.
        show: whether to show anything.
        what: the orders are, for the reader.
    """

    def __init__(self, tokens: int | None, orders: int, show: bool, what: str = "orders"):
        self._bar: Any = Bar(total=tokens, unit=" tokens", unit_scale=True, disable=not show)
        self._orders, self._what, self._finished, self._share = orders, what, 0, 0.0
        self._tokens = 0.0
        self.layer_runs = 0

    def __enter__(self) -> OrderProgress:
        self._bar.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.__exit__(kind, error, at)

    def batch(self, tokens: int, finished: int, layer_runs: int) -> None:
        """Begin with a batch of so many tokens: some orders are finished, the others take ``layer_runs``."""
        done = tokens * finished / self._orders
        self._finished, self._share = finished, (tokens - done) / max(1, layer_runs)
        self._advance(done)

    def ran(self, layers: int) -> None:
        """Count layers that ran."""
        self.layer_runs += layers
        self._say()
        self._advance(layers * self._share)

    def finished(self) -> None:
        """Count an order that is through with this batch."""
        self._finished += 1
        self._say()

    def _advance(self, tokens: float) -> None:
        self._tokens += tokens
        self._bar.update(round(self._tokens) - self._bar.n)

    def _say(self) -> None:
        said = f"{self._finished}/{self._orders} {self._what}, {self.layer_runs:,} layer runs"
        self._bar.set_postfix_str(said, refresh=False)


class PassProgress:
    """A bar for one pass of a run after another, each with its name.

    Args:
        show: whether to show anything.
    """

    def __init__(self, show: bool):
        self._show = show
        self._bar: Any = None

    def __enter__(self) -> PassProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def begin(self, what: str, total: int | None, unit: str) -> None:
        """Begin with a pass over ``total`` of a unit, if that is known; the one before is through."""
        self._close()
        scaled = unit == "tokens"  # to thousands and millions
        self._bar = Bar(desc=what, total=total, unit=f" {unit}", unit_scale=scaled, disable=not self._show)

    def ran(self, count: int) -> None:
        """Count what the pass is through with."""
        self._bar.update(count)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
