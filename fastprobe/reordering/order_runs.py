"""Run many orders on one batch, each distinct prefix once, within a memory budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastprobe.errors import InputError
from fastprobe.models.stack import LayerStack
from fastprobe.models.unpadded.stack import FlatStack
from fastprobe.orders.plan import ROOT, OrderPlan
from fastprobe.runtime.memory import free_bytes, human

LAYER_CALL_TOKENS = {"cpu": 4096, "cuda": 65_536}
"""Most tokens of the states that one call of a layer takes, by type of device. More are not faster."""


class OrderRuns:
    """Iterator over pairs of an order's number in the plan and its final state, in the sequence they complete.

    Args:
        stack: the model on a batch.
        plan: the orders.
        memory: bytes that states may take; a quarter of the free memory by default. At least one path is held.
        see: callback for the state of every prefix, with its node in the plan, its number of steps and the state.

    Raises:
        InputError: the states do not fit in the free memory.
    """

    def __init__(
        self,
        stack: LayerStack | FlatStack,
        plan: OrderPlan,
        memory: int | None = None,
        see: Callable[[int, int, Tensor], None] = lambda node, depth, state: None,
    ):
        self.stack, self.plan, self._see = stack, plan, see
        free = free_bytes(stack.stem.device)
        room = memory if memory is not None else 2**30 if free is None else free // 4
        self.budget = max(1, room // max(1, stack.stem.nbytes))
        tokens = LAYER_CALL_TOKENS.get(stack.stem.device.type, LAYER_CALL_TOKENS["cuda"])
        self.batch = max(1, tokens * stack.stem.shape[-1] // max(1, stack.stem.numel()))
        if memory is None and free is not None:
            need = plan.peak_states(self.budget, self.batch) * stack.stem.nbytes
            if need > free:
                raise InputError(
                    f"memory: the states of these orders take {human(need)} at a time and {human(free)} are free; "
                    "use smaller batches (--batch-size)"
                )

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        states = {ROOT: self.stack.stem}
        for run in self.plan.schedule(self.budget, self.batch):
            inputs = [states[node] for node in run.inputs]
            together = inputs[0] if len(inputs) == 1 else torch.cat(inputs)
            outputs = self.stack.apply(run.step, together, len(inputs)).tensor_split(len(inputs))
            states.update(zip(run.outputs, outputs, strict=True))
            for node in run.outputs:
                self._see(node, len(self.plan.path(node)), states[node])
            for node, order in run.ends:
                yield order, states[node]
            for node in run.freed:
                del states[node]
