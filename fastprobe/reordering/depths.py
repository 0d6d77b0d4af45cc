"""What an order does on the way: the state after k of its steps against the model's own after k layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastprobe.models.protocols import Stack
from fastprobe.reordering.effects import Sums, by_sequence, compared


class DepthEffects:
    """Compares the states of prefixes of orders on one batch; orders that share a prefix share its comparison.

    Runs the model's own layers once, and holds what each of them gives.

    Args:
        stack: the model on the batch.
        mask: ``(batch, length)`` bool, tokens that count.
    """

    def __init__(self, stack: Stack, mask: Tensor):
        self._stack, self._mask = stack, mask
        self._own: list[Tensor] = []
        self._sums: dict[int, Sums] = {}
        state = stack.stem
        for layer in range(len(stack)):
            state = stack.apply(layer, state)
            self._own.append(stack.rows(state, mask).float())

    @property
    def layer_runs(self) -> int:
        return len(self._own)

    @property
    def nbytes(self) -> int:
        """What the model's own states take."""
        return sum(state.nbytes for state in self._own)

    def see(self, node: int, depth: int, state: Tensor) -> None:
        """Compare the state of a prefix of ``depth`` steps, if the model has as many."""
        if depth <= len(self._own):
            self._sums[node] = by_sequence(
                compared(self._stack.rows(state, self._mask).float(), self._own[depth - 1]), self._mask
            )

    def along(self, nodes: Sequence[int]) -> Sums:
        """The sums of an order that goes through these nodes, by name and depth: ``error@3`` after three steps."""
        return {
            f"{name}@{depth}": values
            for depth, node in enumerate(nodes, 1)
            if node in self._sums
            for name, values in self._sums[node].items()
        }
