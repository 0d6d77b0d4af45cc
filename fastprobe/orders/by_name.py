"""Families of orders by the names that a user types on the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

from fastprobe.errors import InputError
from fastprobe.orders import families, published, sublayers
from fastprobe.orders.arguments import plain_numbers
from fastprobe.orders.order import Order, check
from fastprobe.orders.text import load, parse

FAMILIES: dict[str, Callable[..., list[Order]]] = {
    "swaps": families.swaps,
    "adjacent": lambda n: families.swaps(n, adjacent=True),
    "replacements": families.replacements,
    "moves": families.moves,
    "drops": families.drops,
    "skips": families.skips,
    "repeats": families.repeats,
    "blocks": families.blocks,
    "reversals": families.reversals,
    "shuffle": families.shuffles,
    "groups": families.groups,
    "cycles": families.cycles,
    "parallel": families.parallel,
    "painters": published.painters,
    "ffn-swaps": lambda n: sublayers.sublayer_swaps(n, "ffn"),
    "attention-swaps": lambda n: sublayers.sublayer_swaps(n, "attention"),
    "attentions-first": sublayers.attentions_first,
}
"""Name -> family. Options are written ``shuffle:fixed=4,count=100``."""


@plain_numbers
def named(text: str, n: int) -> list[Order]:
    """Return the orders of n layers that a text names.

    Args:
        text: a family (``swaps``, ``drops:width=2``), a protocol of the paper (``paper:fix4``), a file of orders
            (``file:orders.txt``; ``file:orders.txt,first=1`` if it counts layers from 1) or one order (``0,2,1,3``).
        n: number of layers of the model.

    Raises:
        InputError: the name or an option is unknown, or a model of n layers cannot run an order.
    """
    name, _, rest = text.partition(":")
    if name == "file":
        orders = _from_file(rest, n)
    elif name == "paper":
        orders = published.paper(rest, n)
    elif name in FAMILIES:
        orders = FAMILIES[name](n, **_options(text, FAMILIES[name], rest))
    elif re.match(r"[\d(]|attention\.|ffn\.", text):
        orders = [parse(text)]
    else:
        raise InputError(
            f"orders: {text!r} is not one of {', '.join(FAMILIES)}, paper:NAME, file:PATH, or an order like 0,2,1,3"
        )
    for order in orders:
        check(order, n)
    return orders


def _from_file(rest: str, n: int) -> list[Order]:
    path, counted, first = rest.partition(",first=")
    if counted and not first.isdigit():
        raise InputError(f"orders: 'file:{rest}': first must be a number, got {first!r}")
    try:
        return load(path, layers=n, first=int(first or 0))
    except InputError as error:
        if counted or f"no layer {n};" not in str(error):
            raise
        raise InputError(f"{error}; if the file counts from 1, name it as file:{path},first=1") from None


def _options(text: str, family: Callable[..., list[Order]], rest: str) -> dict[str, int | str]:
    """Parse ``fixed=4,count=100`` into keyword arguments of a family."""
    known = {
        name: parameter
        for name, parameter in inspect.signature(family, eval_str=True).parameters.items()
        if name != "n"
    }
    options: dict[str, int | str] = {}
    for part in rest.split(",") if rest else []:
        name, equals, value = part.partition("=")
        if not equals or name not in known:
            takes = ", ".join(f"{option}=..." for option in known) or "no options"
            raise InputError(f"orders: {text!r}: {part!r} is no option; {text.partition(':')[0]} takes {takes}")
        if known[name].annotation is str:
            options[name] = value
        elif value.isdigit():
            options[name] = int(value)
        else:
            raise InputError(f"orders: {text!r}: {name} must be a number, got {value!r}")
    missing = [name for name, p in known.items() if p.default is inspect.Parameter.empty and name not in options]
    if missing:
        raise InputError(f"orders: {text!r} needs {', '.join(f'{name}=...' for name in missing)}")
    return options
