"""Families of orders: swaps, moves, drops, repeats, reversals, shuffles and others of a model of n layers.

Each function returns a list in a fixed sequence. A family holds each order once and never the baseline
``0, 1, ..., n - 1``.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable

from fastprobe.errors import InputError
from fastprobe.orders.arguments import plain_numbers
from fastprobe.orders.order import Order, Parallel, identity


@plain_numbers
def swaps(n: int, adjacent: bool = False) -> list[Order]:
    """Swap two layers i < j: ``0 .. j .. i .. n-1``. There are n (n - 1) / 2 orders.

    Args:
        n: number of layers.
        adjacent: only the n - 1 pairs with j = i + 1.

    Example:
        >>> [str(order) for order in swaps(3)]
        ['1,0,2', '2,1,0', '0,2,1']
    """
    return [
        _order(f"swap {i} {j}", [{i: j, j: i}.get(layer, layer) for layer in range(n)])
        for i, j in itertools.combinations(range(n), 2)
        if not adjacent or j == i + 1
    ]


@plain_numbers
def replacements(n: int) -> list[Order]:
    """Run layer j in the place of layer i as well as in its own. There are n (n - 1) orders."""
    return [
        _order(f"replace {i} by {j}", [j if layer == i else layer for layer in range(n)])
        for i, j in itertools.permutations(range(n), 2)
    ]


@plain_numbers
def moves(n: int) -> list[Order]:
    """Take one layer out and insert it at another place. There are (n - 1)^2 different orders."""
    orders = []
    for layer, place in itertools.product(range(n), repeat=2):
        rest = [other for other in range(n) if other != layer]
        orders.append(_order(f"move {layer} to {place}", [*rest[:place], layer, *rest[place:]]))
    return _distinct(orders, n)


@plain_numbers
def drops(n: int, width: int = 1) -> list[Order]:
    """Leave out ``width`` layers. There are C(n, width) orders."""
    check_argument(n, width=width, least=1, most=n - 1)
    return [
        _order("drop " + " ".join(map(str, out)), [layer for layer in range(n) if layer not in out])
        for out in itertools.combinations(range(n), width)
    ]


@plain_numbers
def skips(n: int) -> list[Order]:
    """Leave out a span of neighbouring layers, but not all of them. There are n (n + 1) / 2 - 1 orders."""
    return [
        _order(f"skip {i}-{j}", [*range(i), *range(j, n)])
        for i, j in itertools.combinations(range(n + 1), 2)
        if j - i < n
    ]


@plain_numbers
def repeats(n: int, times: int = 2) -> list[Order]:
    """Run one layer ``times`` times in a row. There are n orders."""
    check_argument(n, times=times, least=2)
    return [
        _order(f"{times} times {layer}", [*range(layer), *[layer] * times, *range(layer + 1, n)]) for layer in range(n)
    ]


@plain_numbers
def blocks(n: int, times: int = 2) -> list[Order]:
    """Run a span of layers ``times`` times before the layers after it, as RYS does. There are n (n + 1) / 2 orders."""
    check_argument(n, times=times, least=2)
    return [
        _order(f"{times} times {i}-{j}", [*range(i), *[*range(i, j)] * times, *range(j, n)])
        for i, j in itertools.combinations(range(n + 1), 2)
    ]


@plain_numbers
def reversals(n: int, width: int | None = None) -> list[Order]:
    """Run a span of two or more layers backwards. There are n (n - 1) / 2 orders, or n - width + 1 with a ``width``."""
    check_argument(n, width=2 if width is None else width, least=2, most=n)
    return [
        _order(f"reverse {i}-{j}", [*range(i), *reversed(range(i, j)), *range(j, n)])
        for i, j in itertools.combinations(range(n + 1), 2)
        if j - i >= 2 and width in (None, j - i)
    ]


@plain_numbers
def shuffles(n: int, fixed: int = 0, count: int = 100, seed: int = 0) -> list[Order]:
    """Draw permutations in which exactly ``fixed`` layers keep their places.

    There are C(n, fixed) D(n - fixed) such permutations, where D(k) is the number of derangements of k elements.

    Args:
        n: number of layers.
        fixed: number of layers that keep their places.
        count: number of different orders to draw. All are returned if there are fewer.
        seed: seed of the draw.

    Raises:
        InputError: no permutation has exactly ``fixed`` layers in place.
    """
    check_argument(n, fixed=fixed, least=0, most=n - 2)
    moving = n - fixed
    possible = math.comb(n, fixed) * _derangements(moving)
    generator = random.Random(seed)
    found: dict[tuple[int, ...], None] = {}
    if possible <= 4 * count:
        everything = [p for p in itertools.permutations(range(n)) if sum(i == p[i] for i in range(n)) == fixed]
        found = dict.fromkeys(generator.sample(everything, min(count, possible)))
    while len(found) < min(count, possible):
        places = sorted(generator.sample(range(n), moving))
        mixed = generator.sample(places, moving)
        if all(a != b for a, b in zip(places, mixed, strict=True)):
            moved = dict(zip(places, mixed, strict=True))
            found.setdefault(tuple(moved.get(layer, layer) for layer in range(n)))
    return [_order(f"shuffle {i}, {fixed} fixed", order) for i, order in enumerate(found)]


@plain_numbers
def groups(n: int, size: int) -> list[Order]:
    """Permute groups of ``size`` neighbouring layers. There are m! - 1 orders of m = ceil(n / size) groups.

    The layers of a group stay together and in order. The last group may be smaller.
    """
    check_argument(n, size=size, least=1, most=n)
    cut = [range(start, min(start + size, n)) for start in range(0, n, size)]
    return [
        _order("groups " + " ".join(map(str, places)), [layer for place in places for layer in cut[place]])
        for places in itertools.permutations(range(len(cut)))
    ][1:]


@plain_numbers
def cycles(n: int, size: int = 1) -> list[Order]:
    """Run one span of ``size`` layers again and again, n layers in all, as ALBERT shares one layer.

    There are n - size + 1 orders, or none if ``size`` is n.
    """
    check_argument(n, size=size, least=1, most=n)
    return [
        _order(f"only {i}-{i + size}", [i + place % size for place in range(n)])
        for i in range(n - size + 1)
        if size < n
    ]


@plain_numbers
def parallel(n: int, start: int, stop: int, times: int = 1) -> list[Order]:
    """Run layers ``start`` to ``stop`` (half-open) on the same state and average their outputs. One order.

    Args:
        n: number of layers.
        start: the first parallel layer.
        stop: the first layer after the parallel ones.
        times: repetitions of the parallel step.
    """
    check_argument(n, start=start, least=0, most=n - 1)
    check_argument(n, stop=stop, least=start + 1, most=n)
    together = Parallel(tuple(range(start, stop)))
    name = f"parallel {start}-{stop}" + (f", {times} times" if times > 1 else "")
    return [Order((*range(start), *[together] * times, *range(stop, n)), name)]


def check_argument(n: int, *, least: int, most: int | None = None, **value: int) -> None:
    """Raise an error if the one keyword argument ``value`` is out of its range for n layers.

    Raises:
        InputError: the value is below ``least`` or above ``most``.
    """
    ((name, given),) = value.items()
    if given < least or (most is not None and given > most):
        upper = f" and at most {most}" if most is not None else ""
        raise InputError(f"{name}: must be at least {least}{upper} for {n} layers, got {given}")


def _order(name: str, layers: Iterable[int]) -> Order:
    return Order(tuple(layers), name)


def _distinct(orders: Iterable[Order], n: int) -> list[Order]:
    """Drop the baseline and duplicates. The first name of an order stays."""
    found: dict[Order, None] = {}
    for order in orders:
        found.setdefault(order)
    found.pop(identity(n), None)
    return [*found]


def _derangements(n: int) -> int:
    """Return the number of permutations of n elements without a fixed point: D(n) = (n - 1) (D(n - 1) + D(n - 2))."""
    counts = [1, 0]
    for k in range(2, n + 1):
        counts.append((k - 1) * (counts[-1] + counts[-2]))
    return counts[n]
