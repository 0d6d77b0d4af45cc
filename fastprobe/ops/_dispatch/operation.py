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

    def __init__(
        self, definition: Callable[..., Any], check: Callable[..., None], arguments: Callable[..., Any] | None = None
    ):
        functools.update_wrapper(self, definition)
        self.name: str = definition.__name__
        self._definition, self._check, self._arguments = definition, check, arguments
        self._implementations: dict[str, tuple[Callable[..., Any], Refusal]] = {
            "torch": (definition, lambda *args, **kwargs: None)
        }
        self._passed_over: dict[str, Callable[..., bool]] = {}

    def register(
        self, backend: str, *, unless: Refusal, passed_over: Callable[..., bool] | None = None
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Add an implementation.

        Args:
            backend: its name, one of ``BACKENDS``.
            unless: returns why it refuses given arguments, or ``None``.
            passed_over: whether ``auto`` leaves it to those who ask for it by name although it would take them.
        """
        assert backend in BACKENDS
        assert backend not in self._implementations

        def add(implementation: Callable[..., Any]) -> Callable[..., Any]:
            self._implementations[backend] = (implementation, unless)
            if passed_over is not None:
                self._passed_over[backend] = passed_over
            return implementation

        return add

    def refusals(self, *args: Any, **kwargs: Any) -> dict[str, str | None]:
        """Why each backend would refuse these arguments; ``None`` where it takes them."""
        return {backend: self._refusal(backend, *args, **kwargs) for backend in BACKENDS}

    def _refusal(self, backend: str, *args: Any, **kwargs: Any) -> str | None:
        if backend not in self._implementations:
            return f"{self.name} has no {backend} implementation in this version"
        return self._as_one(self._implementations[backend][1], *args, **kwargs)

    def _as_one(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call what takes the arguments as one object, where the operation has such a thing."""
        return function(*args, **kwargs) if self._arguments is None else function(self._arguments(*args, **kwargs))

    def choose(self, *args: Any, backend: str = "auto", **kwargs: Any) -> str:
        """The backend that a call with these arguments runs on.

        Raises:
            BackendError: ``backend`` names one that refuses; it never falls back.
        """
        backend = _named(backend)
        if backend != "auto" and backend not in BACKENDS:
            raise BackendError(f"backend: {backend!r} is not one of auto, {', '.join(BACKENDS)}")
        if backend == "auto":
            return self._fastest(*args, **kwargs)
        if reason := self._refusal(backend, *args, **kwargs):
            takers = ", ".join(name for name, refusal in self.refusals(*args, **kwargs).items() if refusal is None)
            raise BackendError(f"backend {backend!r}: {reason}; these arguments can run on: {takers}")
        return backend

    def _fastest(self, *args: Any, **kwargs: Any) -> str:
        return next(name for name in BACKENDS if self._takes_by_itself(name, *args, **kwargs))

    def _takes_by_itself(self, backend: str, *args: Any, **kwargs: Any) -> bool:
        if self._refusal(backend, *args, **kwargs) is not None:
            return False
        return backend not in self._passed_over or not self._as_one(self._passed_over[backend], *args, **kwargs)

    def run(self, *args: Any, backend: str = "auto", **kwargs: Any) -> tuple[str, Any]:
        """The backend that a call runs on, and what it returns."""
        self._as_one(self._check, *args, **kwargs)
        backend = self.choose(*args, backend=backend, **kwargs)
        if backend == "torch":
            return backend, self._definition(*args, **kwargs)
        return backend, self._as_one(self._implementations[backend][0], *args, **kwargs)

    def __call__(self, *args: Any, backend: str = "auto", **kwargs: Any) -> Any:
        return self.run(*args, backend=backend, **kwargs)[1]

    def on(self, backend: str) -> Callable[..., Any]:
        """This operation on one backend, or an error: ``gram_.on("torch")(...)``."""
        return functools.partial(self, backend=backend)

    def where_there_is(self, backend: str) -> Callable[..., Any]:
        """This operation on a backend that has it, or an error; on the fastest one where it was not written for it.

        For verbs, whose one ``backend`` goes to several operations: not each of them has a kernel of every kind.
        """
        backend = _named(backend)
        if backend in BACKENDS and backend not in self._implementations:
            return lambda *args, **kwargs: self(*args, backend=self._fastest(*args, **kwargs), **kwargs)
        return self.on(backend)


def _named(backend: str) -> str:
    """What the caller names or, where it names nothing, the environment."""
    return os.environ.get("FASTPROBE_BACKEND", "auto") if backend == "auto" else backend


def operation(
    *, check: Callable[..., None], arguments: Callable[..., Any] | None = None
) -> Callable[[Callable[..., Any]], Operation]:
    """Make the decorated function the definition of an :class:`Operation`.

    Args:
        check: raises where arguments do not fit each other.
        arguments: what is made of a call's arguments for the check, the other implementations and their refusals, which
            then take one object: for operations of many arguments. They take the call's own by default.
    """
    return lambda definition: Operation(definition, check, arguments)
