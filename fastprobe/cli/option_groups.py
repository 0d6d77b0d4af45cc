"""Options that several commands share as one object."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, Signature
from typing import Any, get_type_hints

Command = Callable[..., None]


def takes(group: type, **defaults: Any) -> Callable[[Command], Command]:
    """Make the fields of a dataclass options of a command.

    The command gets one instance of the dataclass as its first argument. Typer reads the options of a command from its
    signature, so the decorated command has a signature with a parameter for each field in place of that argument::

        written    permute(source: Source, orders: str)
        for Typer  permute(*, model: str | None = None, ..., tokens: str = "16k", ..., orders: str)

    Args:
        group: the dataclass; every field is annotated with a Typer option or argument.
        defaults: defaults of this command, where they differ from those of the fields.

    Example:
        >>> @app.command()  # doctest: +SKIP
        ... @takes(Source, tokens="16k")
        ... def permute(source: Source, orders: str) -> None:
        ...     loaded, tokenizer = source.load_model()
    """
    types = get_type_hints(group, include_extras=True)
    shared = [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=defaults.get(field.name, field.default),
            annotation=types[field.name],
        )
        for field in fields(group)
    ]

    def decorate(command: Command) -> Command:
        _, *others = inspect.signature(command, eval_str=True).parameters.values()  # without the first: the dataclass
        parameters = [*shared, *(parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in others)]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            command(group(**{parameter.name: values.pop(parameter.name) for parameter in shared}), **values)

        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate
