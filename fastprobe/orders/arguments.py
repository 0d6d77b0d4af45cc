"""Arguments of users: numbers of Python, NumPy and torch, and lists of them."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from fastprobe.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


def integer(value: Any, name: str) -> int:
    """Return an integer of Python, NumPy or torch as an ``int``. A bool is none: a mask is no list of layers.

    Args:
        value: what a user passed.
        name: name of the argument, for the message.

    Raises:
        InputError: the value is none.
    """
    try:
        if not _is_bool(value):
            return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # torch raises all three
        pass
    raise InputError(f"{name}: must be an integer, got {in_one_line(value)}")


def integers(values: Any, name: str) -> list[int]:
    """Return an iterable of integers of Python, NumPy or torch as a list of ``int``.

    Raises:
        InputError: it is not an iterable, or an entry is not an integer.
    """
    return [integer(value, name) for value in iterable(values, name, "integers")]


def iterable(values: Any, name: str, of: str) -> Iterable[Any]:
    """Return the values if they are an iterable that is not a string.

    Args:
        values: what a user passed.
        name: name of the argument, for the message.
        of: plural of what the iterable must hold, for the message.

    Raises:
        InputError: they are not.
    """
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__") or getattr(values, "ndim", 1) == 0:
        raise InputError(f"{name}: must be a list of {of}, got {in_one_line(values)}")
    return values


def number(value: Any, name: str) -> float:
    """Return a real number of Python, NumPy or torch as a ``float``, and an integer as an ``int``.

    Args:
        value: what a user passed.
        name: name of the argument, for the message.

    Raises:
        InputError: the value is none.
    """
    try:
        return integer(value, name)
    except InputError:
        pass
    try:
        if not _is_bool(value) and not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise InputError(f"{name}: must be a number, got {in_one_line(value)}")


def plain_numbers(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that its numbers are those of Python, which JSON and torch accept.

    An argument with the annotation ``int`` or ``float``, perhaps with ``| str`` or ``| None``, is converted by
    :func:`integer` or :func:`number`. The function has no ``*args``.

    Raises:
        InputError: a call passes something that is no such number.

    Example:
        >>> import numpy as np
        >>> @plain_numbers
        ... def probe(folds: int, alpha: float | None = None):
        ...     return folds, alpha
        >>> probe(np.int64(5), alpha=np.float32(0.5))
        (5, 0.5)
    """
    parameters = inspect.signature(function).parameters
    kinds = {name: {*str(parameter.annotation).split(" | ")} for name, parameter in parameters.items()}
    kinds = {name: kind for name, kind in kinds.items() if kind & {"int", "float"} and kind <= _NUMBERS}

    def plain(name: str, value: Any) -> Any:
        kind = kinds.get(name)
        if not kind or (value is None and "None" in kind) or (isinstance(value, str) and "str" in kind):
            return value
        return (number if "float" in kind else integer)(value, name)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        places: Any = [plain(name, value) for name, value in zip(parameters, args, strict=False)]
        named: Any = {name: plain(name, value) for name, value in kwargs.items()}
        return function(*places, **named)

    return call


_NUMBERS = {"int", "float", "str", "None"}
"""Annotations, joined by ``|``, of an argument that may be a number."""


def _is_bool(value: Any) -> bool:
    return "bool" in str(getattr(value, "dtype", type(value)))


def in_one_line(value: Any) -> str:
    """Return a value as one line of at most 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
