"""An operation: one contract, one definition, any number of faster implementations, and the one place that chooses.

The body of the decorated function, in plain torch, is the definition and the ``torch`` backend. A faster
implementation registers itself with a predicate that says why it would refuse given arguments.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from fastprobe.errors import BackendError

BACKENDS = ("cuda", "triton", "cpu", "torch")
"""Fastest first; ``auto`` takes the first one that is registered and does not refuse."""

Refusal = Callable[..., str | None]


class Operation:
    """A callable that runs the first implementation that takes its arguments."""

    def __init__(self, definition: Callable[..., Any], check: Callable[..., None]):
        functools.update_wrapper(self, definition)
        self.name: str = definition.__name__
        self._check = check
        self._implementations: dict[str, tuple[Callable[..., Any], Refusal]] = {
            "torch": (definition, lambda *args, **kwargs: None)
        }

    def register(self, backend: str, *, unless: Refusal) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Add an implementation. ``unless(*args)`` returns why it refuses these arguments, or ``None``."""
        assert backend in BACKENDS
        assert backend not in self._implementations

        def add(implementation: Callable[..., Any]) -> Callable[..., Any]:
            self._implementations[backend] = (implementation, unless)
            return implementation

        return add

    def refusals(self, *args: Any, **kwargs: Any) -> dict[str, str | None]:
        """Why each backend would refuse these arguments; ``None`` where it takes them."""
        reasons: dict[str, str | None] = {}
        for backend in BACKENDS:
            if backend in self._implementations:
                reasons[backend] = self._implementations[backend][1](*args, **kwargs)
            else:
                reasons[backend] = f"{self.name} has no {backend} implementation in this version"
        return reasons

    def choose(self, *args: Any, backend: str = "auto", **kwargs: Any) -> str:
        """The backend that a call with these arguments runs on.

        Raises:
            BackendError: ``backend`` names one that refuses; it never falls back.
        """
        if backend == "auto":
            backend = os.environ.get("FASTPROBE_BACKEND", "auto")
        if backend != "auto" and backend not in BACKENDS:
            raise BackendError(f"backend: {backend!r} is not one of auto, {', '.join(BACKENDS)}")
        reasons = self.refusals(*args, **kwargs)
        if backend == "auto":
            return next(name for name, reason in reasons.items() if reason is None)
        if reasons[backend] is not None:
            takers = ", ".join(name for name, reason in reasons.items() if reason is None)
            raise BackendError(f"backend {backend!r}: {reasons[backend]}; these arguments can run on: {takers}")
        return backend

    def __call__(self, *args: Any, backend: str = "auto", **kwargs: Any) -> Any:
        self._check(*args, **kwargs)
        return self._implementations[self.choose(*args, backend=backend, **kwargs)][0](*args, **kwargs)

    def on(self, backend: str) -> Callable[..., Any]:
        """This operation on one backend, or an error: ``gram_.on("torch")(...)``."""
        return functools.partial(self, backend=backend)


def operation(*, check: Callable[..., None]) -> Callable[[Callable[..., Any]], Operation]:
    """Make the decorated function the definition of an :class:`Operation`."""
    return lambda definition: Operation(definition, check)
