"""Families of orders that people ask about: each a list in a fixed order, each order once, without the identity."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence

from fastprobe.errors import InputError
from fastprobe.orders.order import Order, Parallel, Step, Sublayer, identity


def swaps(n: int, adjacent: bool = False) -> list[Order]:
    """Two layers interchanged: all n (n - 1) / 2 pairs, or only neighbours."""
    return [
        _named(f"swap {i} {j}", _interchanged(range(n), i, j))
        for i, j in itertools.combinations(range(n), 2)
        if not adjacent or j == i + 1
    ]


def replacements(n: int) -> list[Order]:
    """One layer in the place of another, which does not run: all n (n - 1)."""
    return [
        _named(f"replace {i} by {j}", [j if layer == i else layer for layer in range(n)])
        for i, j in itertools.permutations(range(n), 2)
    ]


def moves(n: int) -> list[Order]:
    """One layer taken out and put in at another place: (n - 1)^2 different orders."""
    orders = []
    for layer, place in itertools.product(range(n), repeat=2):
        rest = [other for other in range(n) if other != layer]
        orders.append(_named(f"move {layer} to {place}", [*rest[:place], layer, *rest[place:]]))
    return _different(orders, n)


def drops(n: int, width: int = 1) -> list[Order]:
    """Every choice of ``width`` layers left out."""
    _check(n, width=width, least=1, most=n - 1)
    return [
        _named("drop " + " ".join(map(str, out)), [layer for layer in range(n) if layer not in out])
        for out in itertools.combinations(range(n), width)
    ]


def skips(n: int) -> list[Order]:
    """Every span of layers left out, but the one of all."""
    return [
        _named(f"skip {i}-{j}", [*range(i), *range(j, n)])
        for i, j in itertools.combinations(range(n + 1), 2)
        if j - i < n
    ]


def repeats(n: int, times: int = 2) -> list[Order]:
    """One layer run ``times`` times in a row."""
    _check(n, times=times, least=2)
    return [
        _named(f"{times} times {layer}", [*range(layer), *[layer] * times, *range(layer + 1, n)]) for layer in range(n)
    ]


def blocks(n: int, times: int = 2) -> list[Order]:
    """A span of layers run ``times`` times before what follows it, as RYS does: all n (n + 1) / 2 spans."""
    _check(n, times=times, least=2)
    return [
        _named(f"{times} times {i}-{j}", [*range(i), *[*range(i, j)] * times, *range(j, n)])
        for i, j in itertools.combinations(range(n + 1), 2)
    ]


def reversals(n: int, width: int | None = None) -> list[Order]:
    """A span of layers run backwards: every span, or those of ``width`` layers."""
    _check(n, width=2 if width is None else width, least=2, most=n)
    return [
        _named(f"reverse {i}-{j}", [*range(i), *reversed(range(i, j)), *range(j, n)])
        for i, j in itertools.combinations(range(n + 1), 2)
        if j - i >= 2 and width in (None, j - i)
    ]


def shuffles(n: int, fixed: int = 0, count: int = 100, seed: int = 0) -> list[Order]:
    """Layers at random places but for exactly ``fixed`` of them: ``count`` different orders, or all if there are fewer.

    Raises:
        InputError: ``fixed`` layers cannot stay while every other one moves.
    """
    _check(n, fixed=fixed, least=0, most=n - 2)
    moving = n - fixed
    possible = math.comb(n, fixed) * _derangements(moving)
    chance = random.Random(seed)
    found: dict[tuple[int, ...], None] = {}
    if possible <= 4 * count:
        everything = [p for p in itertools.permutations(range(n)) if sum(i == p[i] for i in range(n)) == fixed]
        found = dict.fromkeys(chance.sample(everything, min(count, possible)))
    while len(found) < min(count, possible):
        places = sorted(chance.sample(range(n), moving))
        mixed = chance.sample(places, moving)
        if all(a != b for a, b in zip(places, mixed, strict=True)):
            moved = dict(zip(places, mixed, strict=True))
            found.setdefault(tuple(moved.get(layer, layer) for layer in range(n)))
    return [_named(f"shuffle {i}, {fixed} fixed", order) for i, order in enumerate(found)]


def groups(n: int, size: int) -> list[Order]:
    """Groups of ``size`` neighbours in every other order, each group as it is; the last one may be smaller."""
    _check(n, size=size, least=1, most=n)
    cut = [range(start, min(start + size, n)) for start in range(0, n, size)]
    return [
        _named("groups " + " ".join(map(str, places)), [layer for place in places for layer in cut[place]])
        for places in itertools.permutations(range(len(cut)))
    ][1:]


def cycles(n: int, size: int = 1) -> list[Order]:
    """A span of ``size`` layers alone, again and again up to n layers, as ALBERT shares one layer."""
    _check(n, size=size, least=1, most=n)
    return [
        _named(f"only {i}-{i + size}", [i + place % size for place in range(n)])
        for i in range(n - size + 1)
        if size < n
    ]


def parallel(n: int, start: int, stop: int, times: int = 1) -> list[Order]:
    """Layers ``start`` to ``stop`` on one state, their mean going on; ``times`` times over."""
    _check(n, start=start, least=0, most=n - 1)
    _check(n, stop=stop, least=start + 1, most=n)
    together = Parallel(tuple(range(start, stop)))
    name = f"parallel {start}-{stop}" + (f", {times} times" if times > 1 else "")
    return [Order((*range(start), *[together] * times, *range(stop, n)), name)]


PAINTERS = ("skip", "reverse", "middle_repeat", "random", "parallel", "looped_parallel")


def painters(n: int, mode: str, start: int, *, seed: int = 0, loops: int = 3) -> list[Order]:
    """What "Transformer Layers as Painters" (Sun et al., 2024) does to the layers from ``start`` to ``n - start``.

    Args:
        n: layers of the model.
        mode: ``skip`` leaves them out, ``reverse`` runs them backwards, ``middle_repeat`` runs the middle one in the
            place of each, ``random`` shuffles them, ``parallel`` gives all of them one state and goes on with the mean,
            ``looped_parallel`` does that ``loops`` times.
        start: the first of them; as many layers at the end stay as they are.
        seed: of ``random``.
        loops: of ``looped_parallel``.
    """
    if mode not in PAINTERS:
        raise InputError(f"painters: {mode!r} is not one of {', '.join(PAINTERS)}")
    _check(n, start=start, least=0, most=(n - 1) // 2)
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


def sublayer_swaps(n: int, part: str) -> list[Order]:
    """The attentions (``"attention"``) or the FFNs (``"ffn"``) of two layers interchanged, all else in its place."""
    if part not in ("attention", "ffn"):
        raise InputError(f"sublayer_swaps: {part!r} is not attention or ffn")
    orders = []
    for i, j in itertools.combinations(range(n), 2):
        moved = {i: j, j: i}
        steps: list[Step] = []
        for layer in range(n):
            if layer in moved:
                steps += [Sublayer(p, moved[layer] if p == part else layer) for p in ("attention", "ffn")]
            else:
                steps.append(layer)
        orders.append(Order(tuple(steps), f"swap {part} {i} {j}"))
    return orders


def attentions_first(n: int) -> list[Order]:
    """All attentions, then all FFNs."""
    steps = [Sublayer(part, layer) for part in ("attention", "ffn") for layer in range(n)]
    return [Order(tuple(steps), "attentions first")]


PAPER = {
    "swaps": lambda n: swaps(n),
    "triples": lambda n: reversals(n, 3),
    "groups": lambda n: groups(n, max(1, n // 3)),
    "albert": lambda n: cycles(n),
}
"""Protocols of Zhao et al. (2021) by name; ``fix0`` to ``fix10`` are the shuffles with that many layers fixed."""


def paper(name: str, n: int = 12) -> list[Order]:
    """A protocol of Zhao et al. (2021): ``swaps``, ``triples``, ``groups``, ``albert`` or ``fix0``, ``fix1``, ..."""
    if name in PAPER:
        return PAPER[name](n)
    if match := re.fullmatch(r"fix(\d+)", name):
        return shuffles(n, fixed=int(match[1]))
    raise InputError(f"paper: {name!r} is not one of {', '.join(PAPER)}, fix0 to fix{n - 2}")


def _named(name: str, layers: Iterable[int]) -> Order:
    return Order(tuple(layers), name)


def _interchanged(layers: Iterable[int], i: int, j: int) -> list[int]:
    order = list(layers)
    order[i], order[j] = order[j], order[i]
    return order


def _different(orders: Iterable[Order], n: int) -> list[Order]:
    """Each order once, by its first name, and not the identity."""
    found: dict[Order, None] = {}
    for order in orders:
        found.setdefault(order)
    found.pop(identity(n), None)
    return [*found]


def _derangements(n: int) -> int:
    counts = [1, 0]
    for k in range(2, n + 1):
        counts.append((k - 1) * (counts[-1] + counts[-2]))
    return counts[n]


def _check(n: int, *, least: int, most: int | None = None, **value: int) -> None:
    ((name, given),) = value.items()
    if given < least or (most is not None and given > most):
        upper = f" and at most {most}" if most is not None else ""
        raise InputError(f"{name}: must be at least {least}{upper} for {n} layers, got {given}")
