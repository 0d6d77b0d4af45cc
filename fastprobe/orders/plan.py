"""Order plans: many orders merged into one prefix tree, so that each shared prefix runs once.

Pure data: a plan knows nothing about layers or states. Example: the orders ``0,1,2`` and ``0,2,1`` share the prefix
``0``, so their plan has five nodes instead of six.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastprobe.errors import InputError

ROOT = -1
"""The node before the first step. Its state is the input of the first step."""


@dataclass(frozen=True)
class Application:
    """A step that is run on the states of several nodes in one batch."""

    step: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]  # as many as inputs; output k is the step applied to input k
    ends: tuple[tuple[int, int], ...]  # (node, order) pairs: orders that are complete after this step
    freed: tuple[int, ...]  # nodes whose states are not needed any more; may include ROOT


class OrderPlan:
    """The prefix tree of a list of orders.

    A node is a distinct prefix: the prefix of its parent, followed by one step.

    Args:
        parents: for each node, its parent; ``ROOT`` for a first step.
        steps: for each node, its last step.
        ends: for each order, the node of its last step.
    """

    def __init__(self, parents: list[int], steps: list[Hashable], ends: list[int]):
        self.parents, self.steps, self.ends = parents, steps, ends
        self.children: dict[int, list[int]] = {}
        for node, parent in enumerate(parents):
            self.children.setdefault(parent, []).append(node)
        self.orders_of: dict[int, list[int]] = {}
        for order, node in enumerate(ends):
            self.orders_of.setdefault(node, []).append(order)
        self._below = [0] * len(parents)  # steps of the longest path below a node
        for node in reversed(range(len(parents))):
            if parents[node] != ROOT:
                self._below[parents[node]] = max(self._below[parents[node]], self._below[node] + 1)

    @classmethod
    def of(cls, orders: Iterable[Iterable[Hashable]]) -> OrderPlan:
        """Build the plan that runs every distinct prefix of these orders once.

        Raises:
            InputError: an order is empty.
        """
        parents: list[int] = []
        steps: list[Hashable] = []
        ends: list[int] = []
        nodes: dict[tuple[int, Hashable], int] = {}
        for order in orders:
            node = ROOT
            for step in order:
                key = (node, step)
                if key not in nodes:
                    nodes[key] = len(parents)
                    parents.append(node)
                    steps.append(step)
                node = nodes[key]
            if node == ROOT:
                raise InputError("order: it is empty; name at least one layer")
            ends.append(node)
        return cls(parents, steps, ends)

    @property
    def applications(self) -> int:
        """The number of steps in the plan, which is the number of distinct prefixes."""
        return len(self.parents)

    @property
    def naive_applications(self) -> int:
        """The number of steps without a plan: the sum of the lengths of the orders."""
        return sum(len(self.path(node)) for node in self.ends)

    def path(self, node: int) -> list[int]:
        """Return the nodes from the first step to this one."""
        nodes = []
        while node != ROOT:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def schedule(self, budget: int, batch: int = 1) -> Iterator[Application]:
        """Yield applications such that every input has been computed before.

        The schedule is breadth-first while the states of a level fit into the budget. Nodes of a level with the same
        step form one batch. A level that does not fit is split, and each part runs to its leaves before the next one.
        The minimum is the states of one path, also if the budget is smaller.

        Args:
            budget: largest number of states to hold at one time.
            batch: largest number of states in one application.
        """
        waiting = {node: len(children) for node, children in self.children.items()}

        def expand(children: Sequence[int]) -> Iterator[Application]:
            by_step: dict[Hashable, list[int]] = {}
            for child in children:
                by_step.setdefault(self.steps[child], []).append(child)
            for step, group in by_step.items():
                for start in range(0, len(group), batch):
                    outputs = group[start : start + batch]
                    inputs = [self.parents[node] for node in outputs]
                    for node in inputs:
                        waiting[node] -= 1
                    freed = [node for node in dict.fromkeys(inputs) if not waiting[node]]
                    freed += [node for node in outputs if node not in waiting]
                    ends = [(node, order) for node in outputs for order in self.orders_of.get(node, ())]
                    yield Application(step, tuple(inputs), tuple(outputs), tuple(ends), tuple(freed))

        def visit(nodes: Sequence[int], held: int) -> Iterator[Application]:
            """Run everything below these nodes while ``held`` other states are kept."""
            nodes = [node for node in nodes if node in self.children]
            children = [child for node in nodes for child in self.children[node]]
            if not children:
                return
            path = max(self._below[child] for child in children)  # a depth-first run holds this many
            if held + len(children) + max(len(nodes), path) <= budget:
                yield from expand(children)
                yield from visit(children, held)
            elif len(nodes) > 1:
                half = len(nodes) // 2
                yield from visit(nodes[:half], held + len(nodes) - half)
                yield from visit(nodes[half:], held)
            else:
                room = max(1, budget - held - 1 - path)
                for start in range(0, len(children), room):
                    part = children[start : start + room]
                    yield from expand(part)
                    yield from visit(part, held + (start + room < len(children)))

        yield from visit([ROOT], 0)

    def peak_states(self, budget: int, batch: int = 1) -> int:
        """Return the largest number of states that :meth:`schedule` holds at one time, including that of ROOT."""
        held = peak = 1
        for application in self.schedule(budget, batch):
            held += len(application.outputs)
            peak = max(peak, held)
            held -= len(application.freed)
        return peak
