"""An operation: one contract, one definition, faster implementations, and the choice between them.

The body of the decorated function, in plain torch, is the definition and the ``torch`` backend. A faster
implementation registers with a predicate that returns why it refuses given arguments.

A call without a backend runs the first implementation in the order of ``BACKENDS`` that does not refuse its arguments
and is not passed over (:meth:`Operation.register` explains both). The environment variable ``FASTPROBE_BACKEND``
(``cuda``, ``triton``, ``cpu`` or ``torch``) overrides that choice for every such call in the process. A backend that is
named, there or by ``on``, runs or raises ``BackendError``; it never falls back. ``FASTPROBE_PROCESSOR`` overrides the
choice of libraries and instruction sets: see ``processors.py``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

from fastprobe.errors import BackendError

BACKENDS = ("cuda", "triton", "cpu", "torch")
"""All backends, fastest first. ``auto`` takes the first that is registered, does not refuse and is not passed over."""

P = ParamSpec("P")
R = TypeVar("R")


class Operation(Generic[P, R]):
    """A function of several implementations; calling it runs the fastest one that takes the arguments.

    Args:
        definition: the meaning of the operation, in plain torch.
        check: raises where arguments do not fit each other.
    """

    def __init__(self, definition: Callable[P, R], check: Callable[P, None]):
        functools.update_wrapper(self, definition)
        self.name: str = definition.__name__
        self._check = check
        self._implementations: dict[str, Callable[P, R]] = {"torch": definition}
        self._unless: dict[str, Callable[P, str | None]] = {}
        self._passed_over: dict[str, Callable[P, bool]] = {}

    def register(
        self, backend: str, *, unless: Callable[P, str | None], passed_over: Callable[P, bool] | None = None
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Add an implementation.

        Args:
            backend: one of ``BACKENDS``.
            unless: returns why the implementation refuses given arguments, or ``None``.
            passed_over: returns true where ``auto`` leaves out an implementation that would take the arguments.
        """
        assert backend in BACKENDS
        assert backend not in self._implementations

        def add(implementation: Callable[P, R]) -> Callable[P, R]:
            self._implementations[backend], self._unless[backend] = implementation, unless
            if passed_over is not None:
                self._passed_over[backend] = passed_over
            return implementation

        return add

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.run(*args, **kwargs)[1]

    def run(self, *args: P.args, **kwargs: P.kwargs) -> tuple[str, R]:
        """Return the backend that was chosen, and the result."""
        return self._run(_backend_or_environment("auto"), *args, **kwargs)

    def choose(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the backend that a call with these arguments runs on."""
        return self._choose(_backend_or_environment("auto"), *args, **kwargs)

    def refusals(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, str | None]:
        """Return why each backend would refuse these arguments, or ``None`` where it takes them."""
        return {backend: self._refusal(backend, *args, **kwargs) for backend in BACKENDS}

    def on(self, backend: str) -> OnBackend[P, R]:
        """Return this operation bound to one backend: ``gram_.on("torch")(...)``."""
        return OnBackend(self, _backend_or_environment(backend))

    def on_if_implemented(self, backend: str) -> OnBackend[P, R]:
        """Return this operation bound to a backend, or to the fastest one if it has no implementation for that backend.

        A function such as ``linearity()`` passes one ``backend`` to several operations, and some have no kernel for it.
        Example: ``unit_sum`` has no CUDA kernel, so ``unit_sum.on_if_implemented("cuda")`` runs the fastest it has.
        """
        backend = _backend_or_environment(backend)
        missing = backend in BACKENDS and backend not in self._implementations
        return OnBackend(self, "auto" if missing else backend)

    def _run(self, backend: str, /, *args: P.args, **kwargs: P.kwargs) -> tuple[str, R]:
        self._check(*args, **kwargs)
        chosen = self._choose(backend, *args, **kwargs)
        return chosen, self._implementations[chosen](*args, **kwargs)

    def _choose(self, backend: str, /, *args: P.args, **kwargs: P.kwargs) -> str:
        if backend == "auto":
            return next(name for name in BACKENDS if self._takes(name, *args, **kwargs))
        if backend not in BACKENDS:
            raise BackendError(f"backend: {backend!r} is not one of auto, {', '.join(BACKENDS)}")
        if reason := self._refusal(backend, *args, **kwargs):
            takers = ", ".join(name for name, refusal in self.refusals(*args, **kwargs).items() if refusal is None)
            raise BackendError(f"backend {backend!r}: {reason}; these arguments can run on: {takers}")
        return backend

    def _takes(self, backend: str, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        if self._refusal(backend, *args, **kwargs) is not None:
            return False
        return backend not in self._passed_over or not self._passed_over[backend](*args, **kwargs)

    def _refusal(self, backend: str, /, *args: P.args, **kwargs: P.kwargs) -> str | None:
        if backend == "torch":
            return None
        if backend not in self._implementations:
            return f"{self.name} has no {backend} implementation in this version"
        return self._unless[backend](*args, **kwargs)


class OnBackend(Generic[P, R]):
    """An operation bound to one backend, or to ``auto``. It runs there or raises ``BackendError``."""

    def __init__(self, operation: Operation[P, R], backend: str):
        self._operation, self._backend = operation, backend

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.run(*args, **kwargs)[1]

    def run(self, *args: P.args, **kwargs: P.kwargs) -> tuple[str, R]:
        """Return the backend that was chosen, and the result."""
        return self._operation._run(self._backend, *args, **kwargs)

    def choose(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the backend that a call with these arguments runs on.

        Raises:
            BackendError: the backend is unknown or refuses the arguments.
        """
        return self._operation._choose(self._backend, *args, **kwargs)


def _backend_or_environment(backend: str) -> str:
    """Return ``backend``, or ``FASTPROBE_BACKEND`` where ``backend`` is ``auto``."""
    return os.environ.get("FASTPROBE_BACKEND", "auto") if backend == "auto" else backend


def operation(*, check: Callable[P, None]) -> Callable[[Callable[P, R]], Operation[P, R]]:
    """Make the decorated function the definition of an :class:`Operation`.

    Args:
        check: raises where arguments do not fit each other.
    """
    return lambda definition: Operation(definition, check)
