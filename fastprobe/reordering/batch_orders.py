"""Run orders on one batch and compare their states with the baseline's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

from torch import Tensor

from fastprobe.models.protocols import Stack
from fastprobe.orders import Order
from fastprobe.orders.plan import OrderPlan
from fastprobe.reordering.depths import DepthEffects
from fastprobe.reordering.effects import BatchEffects, Metric, Sums
from fastprobe.reordering.order_runs import OrderRuns


class BatchOrders:
    """Iterator over pairs of an order's index and its sums over one batch, in the sequence they complete.

    Args:
        stack: the model on the batch.
        mask: ``(batch, length)`` bool, the tokens to compare.
        targets: ``(batch, length)`` int64, the id that each token should predict; see ``BatchEffects``.
        orders: all orders, the baseline first.
        missing: indices of the orders to run. The baseline runs in any case, because the others are compared with it.
        metrics: additional columns.
        depths: compare the states after every step, too.
        memory: bytes that states may take.
        ran: callback for the number of layer forwards since the last call.
    """

    def __init__(
        self,
        stack: Stack,
        mask: Tensor,
        targets: Tensor | None,
        orders: Sequence[Order],
        missing: Sequence[int],
        metrics: Mapping[str, Metric],
        depths: bool,
        memory: int | None,
        ran: Callable[[int], None],
    ):
        self._missing = set(missing)
        self._effects_against = partial(BatchEffects, stack, mask, targets, metrics=metrics)
        self._indices = [0, *(index for index in missing if index)]
        self._depths = DepthEffects(stack, mask) if depths else None
        if self._depths and memory is not None:
            memory = max(0, memory - self._depths.nbytes)
        self._ran = ran
        self._runs = OrderRuns(stack, OrderPlan.of(orders[index] for index in self._indices), memory, self._see)

    @property
    def layer_forwards(self) -> int:
        """Layer forwards of all orders to run."""
        return self._runs.plan.applications + (self._depths.layer_forwards if self._depths else 0)

    def __iter__(self) -> Iterator[tuple[int, Sums]]:
        effects = None
        if self._depths:
            self._ran(self._depths.layer_forwards)
        for number, state in _baseline_first(self._runs):
            effects = effects or self._effects_against(baseline=state)
            index = self._indices[number]
            if index in self._missing:
                sums = effects(state)
                if self._depths:
                    sums |= self._depths.along(self._runs.plan.path(self._runs.plan.ends[number]))
                yield index, sums

    def _see(self, node: int, depth: int, state: Tensor) -> None:
        if self._depths:
            self._depths.see(node, depth, state)
        self._ran(1)


def _baseline_first(states: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """Yield the same pairs of order and state, with those that complete before the baseline, order 0, after it."""
    waiting: list[tuple[int, Tensor]] = []
    has_baseline = False
    for number, state in states:
        waiting.append((number, state))
        has_baseline = has_baseline or number == 0
        if has_baseline:
            yield from sorted(waiting, key=lambda pair: pair[0])
            waiting.clear()
