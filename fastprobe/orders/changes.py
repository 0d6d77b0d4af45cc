"""What an order changes about the layers of a model, as data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from fastprobe.orders.order import Edited, Order, Parallel, Step, Sublayer

PARTS = ("attention", "ffn")


def swapped_layers(order: Order, n: int) -> tuple[int, int] | None:
    """Return the two layers i < j that an order interchanges, whole or one part of each; ``None`` for other orders.

    Args:
        order: of a model of n layers.
        n: layers of the model.

    Example:
        >>> swapped_layers(Order((0, 3, 2, 1)), 4)
        (1, 3)
    """
    found = [part for step in order for part in _sublayers(step)]
    baseline = [Sublayer(part, layer) for layer in range(n) for part in PARTS]
    if Counter(found) != Counter(baseline):
        return None
    moved = [(one, other) for one, other in zip(found, baseline, strict=True) if one != other]
    layers = sorted({place.layer for _, place in moved})
    if len(layers) != 2:
        return None
    i, j = layers
    partner = {i: j, j: i}
    swapped = all(one == Sublayer(place.part, partner[place.layer]) for one, place in moved)
    return (i, j) if swapped else None


def layers_kept(order: Order, n: int) -> int | None:
    """Return how many layers a permutation leaves in place; ``None`` for an order that is not a permutation of layers.

    Args:
        order: of a model of n layers.
        n: layers of the model.

    Example:
        >>> layers_kept(Order((0, 3, 2, 1)), 4)
        2
    """
    if Counter(order) != Counter(range(n)):
        return None
    return sum(step == place for place, step in enumerate(order))


def layers_dropped(order: Order, n: int) -> list[int]:
    """Return the layers that take no part in an order, from the first to the last.

    Args:
        order: of a model of n layers.
        n: layers of the model.

    Example:
        >>> layers_dropped(Order((0, 3, 3)), 4)
        [1, 2]
    """
    return sorted({*range(n)} - {*order.layers})


def _sublayers(step: Step) -> Iterator[Sublayer | Parallel | Edited]:
    """Yield the attention and the FFN of a whole layer, and any other step as it is."""
    if isinstance(step, int):
        yield from (Sublayer(part, step) for part in PARTS)
    else:
        yield step
