"""Compare the state after k steps of an order with the baseline's state after k layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastprobe.models.protocols import Stack
from fastprobe.reordering.effects import Sums, compare, sum_by_sequence


class DepthEffects:
    """Comparisons of the states of prefixes of orders on one batch. Orders share the comparison of a common prefix.

    The constructor runs the layers of the baseline once and keeps their states.

    Args:
        stack: the model on the batch.
        mask: ``(batch, length)`` bool, the tokens to compare.
    """

    def __init__(self, stack: Stack, mask: Tensor):
        self._stack, self._mask = stack, mask
        self._baseline: list[Tensor] = []
        self._sums: dict[int, Sums] = {}
        state = stack.stem
        for layer in range(len(stack)):
            state = stack.apply(layer, state)
            self._baseline.append(stack.rows(state, mask).float())

    @property
    def layer_forwards(self) -> int:
        """Layer forwards of the constructor."""
        return len(self._baseline)

    @property
    def nbytes(self) -> int:
        """Bytes of the baseline's states."""
        return sum(state.nbytes for state in self._baseline)

    def see(self, node: int, depth: int, state: Tensor) -> None:
        """Compare the state of a prefix of ``depth`` steps, unless the model has fewer layers."""
        if depth <= len(self._baseline):
            rows = self._stack.rows(state, self._mask).float()
            self._sums[node] = sum_by_sequence(compare(rows, self._baseline[depth - 1]), self._mask)

    def along(self, nodes: Sequence[int]) -> Sums:
        """Return the sums of an order with these nodes, by name and depth: ``error@3`` after three steps."""
        return {
            f"{name}@{depth}": values
            for depth, node in enumerate(nodes, 1)
            if node in self._sums
            for name, values in self._sums[node].items()
        }
