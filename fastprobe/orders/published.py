"""Orders of published experiments: Zhao et al. (2021) and Sun et al. (2024)."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from fastprobe.errors import InputError
from fastprobe.orders.arguments import plain_numbers
from fastprobe.orders.families import check_argument, cycles, groups, reversals, shuffles, swaps
from fastprobe.orders.order import Order, Parallel, Step

PAINTERS = ("skip", "reverse", "middle_repeat", "random", "parallel", "looped_parallel")
"""Modes of :func:`painters`."""


@plain_numbers
def painters(n: int, mode: str, start: int, *, seed: int = 0, loops: int = 3) -> list[Order]:
    """Modify the layers from ``start`` to ``n - start`` as in "Transformer Layers as Painters" (Sun et al., 2024).

    Args:
        n: number of layers.
        mode: ``skip`` leaves the middle layers out. ``reverse`` runs them backwards. ``middle_repeat`` runs the middle
            layer in the place of each. ``random`` shuffles them. ``parallel`` runs them on the same state and takes the
            mean. ``looped_parallel`` does so ``loops`` times.
        start: the first middle layer. As many layers stay in place at the end.
        seed: seed of ``random``.
        loops: repetitions in ``looped_parallel``.

    Returns:
        a list of one order.
    """
    if mode not in PAINTERS:
        raise InputError(f"painters: {mode!r} is not one of {', '.join(PAINTERS)}")
    check_argument(n, start=start, least=0, most=(n - 1) // 2)
    stop = n - start
    middle = list(range(start, stop))
    changed: dict[str, Callable[[], Sequence[Step]]] = {
        "skip": lambda: [],
        "reverse": lambda: middle[::-1],
        "middle_repeat": lambda: [n // 2] * len(middle),
        "random": lambda: random.Random(seed).sample(middle, len(middle)),
        "parallel": lambda: [Parallel(tuple(middle))],
        "looped_parallel": lambda: [Parallel(tuple(middle))] * loops,
    }
    steps = (*range(start), *changed[mode](), *range(stop, n))
    if not steps:
        raise InputError(f"painters: skip from {start} leaves no layer; start at 1 or later")
    return [Order(steps, f"{mode} {start}-{stop}")]


PAPER = {
    "swaps": lambda n: swaps(n),
    "triples": lambda n: reversals(n, 3),
    "groups": lambda n: groups(n, max(1, n // 3)),
    "albert": lambda n: cycles(n),
}
"""Protocols of Zhao et al. (2021) by name. ``fix0`` to ``fix10`` are shuffles with that many layers in place."""


@plain_numbers
def paper(name: str, n: int = 12) -> list[Order]:
    """Return the orders of a protocol of Zhao et al. (2021).

    Args:
        name: ``swaps``, ``triples``, ``groups``, ``albert`` or ``fix0``, ``fix1``, ...
        n: number of layers.
    """
    if name in PAPER:
        return PAPER[name](n)
    if match := re.fullmatch(r"fix(\d+)", name):
        return shuffles(n, fixed=int(match[1]))
    raise InputError(f"paper: {name!r} is not one of {', '.join(PAPER)}, fix0 to fix{n - 2}")
