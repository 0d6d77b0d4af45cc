"""Old names of keyword arguments, accepted for one version with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from fastprobe.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


def renamed_arguments(**new_names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that accepts the old names of keyword arguments.

    Make it the outermost decorator, so that the warning names the line of the caller.

    Args:
        new_names: the new name of each argument by its old name.

    Raises:
        InputError: a call passes an argument by both names.

    Example:
        >>> @renamed_arguments(which="orders")
        ... def probe(orders=()):
        ...     return list(orders)
        >>> probe(which=[3])  # warns: probe: the argument which is now orders; ...
        [3]
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in new_names.items():
                if old in kwargs:
                    _rename(kwargs, old, new, function.__name__)
            return function(*args, **kwargs)

        return call

    return decorate


def _rename(arguments: dict[str, Any], old: str, new: str, function: str) -> None:
    if new in arguments:
        raise InputError(f"{old}: is the old name of {new}, and {function} got both; pass {new} alone")
    warnings.warn(
        f"{function}: the argument {old} is now {new}; the next version will not accept {old}",
        DeprecationWarning,
        stacklevel=3,
    )
    arguments[new] = arguments.pop(old)
