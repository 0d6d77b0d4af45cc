"""Order plans: many orders as one prefix tree, so that what they have in common is run once.

Pure data: nothing here knows what a layer or a state is.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastprobe.errors import InputError

ROOT = -1
"""The node before any step: the state that the first step gets."""


@dataclass(frozen=True)
class Application:
    """One step run on the states of some nodes, in one batch."""

    step: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]  # as many; output k is what the step makes of input k
    ends: tuple[tuple[int, int], ...]  # (node, order) that are complete with it
    freed: tuple[int, ...]  # nodes whose states nobody needs any more, ROOT among them


class OrderPlan:
    """The prefix tree of orders. A node is a distinct prefix: ``parents[node]`` and, after it, ``steps[node]``."""

    def __init__(self, parents: list[int], steps: list[Hashable], ends: list[int]):
        self.parents, self.steps, self.ends = parents, steps, ends
        self.children: dict[int, list[int]] = {}
        for node, parent in enumerate(parents):
            self.children.setdefault(parent, []).append(node)
        self.orders_of: dict[int, list[int]] = {}
        for order, node in enumerate(ends):
            self.orders_of.setdefault(node, []).append(order)
        self._below = [0] * len(parents)  # steps of the longest path that goes on from a node
        for node in reversed(range(len(parents))):
            if parents[node] != ROOT:
                self._below[parents[node]] = max(self._below[parents[node]], self._below[node] + 1)

    @classmethod
    def of(cls, orders: Iterable[Iterable[Hashable]]) -> OrderPlan:
        """The plan that runs every distinct prefix of these orders once.

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
        """Steps that are run: the number of distinct prefixes."""
        return len(self.parents)

    @property
    def naive_applications(self) -> int:
        """Steps that would be run order by order."""
        return sum(len(self.path(node)) for node in self.ends)

    def path(self, node: int) -> list[int]:
        """The nodes from the first step to this one."""
        nodes = []
        while node != ROOT:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def schedule(self, budget: int, batch: int = 1) -> Iterator[Application]:
        """Applications in an order in which every input is there.

        Level by level where all states of a level fit in the budget, nodes with one step in one batch; where they do
        not, a part of the level goes down to the end first. The least that can be held is one path.

        Args:
            budget: most states to hold at one time.
            batch: most states that one application takes.
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
            """All below these nodes, while ``held`` other states are."""
            nodes = [node for node in nodes if node in self.children]
            children = [child for node in nodes for child in self.children[node]]
            if not children:
                return
            path = max(self._below[child] for child in children)  # is held in any case, once it is gone down
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
        """Most states that :meth:`schedule` holds at one time, ROOT among them."""
        held = peak = 1
        for application in self.schedule(budget, batch):
            held += len(application.outputs)
            peak = max(peak, held)
            held -= len(application.freed)
        return peak
