"""Orders that move the attention or the FFN of a layer by itself."""

from __future__ import annotations

import itertools

from fastprobe.errors import InputError
from fastprobe.orders.arguments import plain_numbers
from fastprobe.orders.order import Order, Step, Sublayer


@plain_numbers
def sublayer_swaps(n: int, part: str) -> list[Order]:
    """Swap the attentions or the FFNs of two layers. There are n (n - 1) / 2 orders.

    Args:
        n: number of layers.
        part: ``"attention"`` or ``"ffn"``. The other sublayer stays in its place.
    """
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


@plain_numbers
def attentions_first(n: int) -> list[Order]:
    """Run all attentions, then all FFNs. One order."""
    steps = [Sublayer(part, layer) for part in ("attention", "ffn") for layer in range(n)]
    return [Order(tuple(steps), "attentions first")]
