"""Orders run on one batch, each distinct prefix once, within a budget of memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.batches import select
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.identities import TOLERANCE, why_not_finite
from fastprobe.models.record import without_labels
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.stack import LayerStack
from fastprobe.models.unpadded.stack import FlatStack, MakeStack, stack_of
from fastprobe.orders.plan import ROOT, OrderPlan
from fastprobe.runtime.memory import free_bytes, human

LAYER_CALL_TOKENS = {"cpu": 4096, "cuda": 65_536}
"""Tokens of the states that one call of a layer takes side by side: more would not make it faster."""


class OrderRuns:
    """Pairs of an order's place in a plan and its final state, as they are complete.

    Args:
        stack: the model on a batch.
        plan: what to run.
        memory: bytes that states may take; a quarter of what is free by default. One path is held in any case.
        see: is shown the state of every prefix: its node in the plan, how many steps it has, the state.

    Raises:
        InputError: more states have to be held than fit in what is free.
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
                    "smaller batches (--batch-size) would do"
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


def check_repeatable(batches: Iterable[Any], why: str) -> None:
    """That batches can be gone through more than once.

    Args:
        batches: what a user gave.
        why: what goes through them how often, as a sentence goes on after ``batches:``.

    Raises:
        InputError: they are used up when they were gone through.
    """
    if isinstance(batches, Iterator):
        raise InputError(
            f"batches: {why}, and a {type(batches).__name__} can be only once; "
            "pass a list, a DataLoader or token_batches(...)"
        )


def mask_of(batch: Mapping[str, Any], number: int) -> Tensor:
    """Tokens of a batch that are no padding, ``(batch, length)`` bool.

    Raises:
        InputError: the batch has no ids or no mask.
    """
    for key in ("input_ids", "attention_mask"):
        if not isinstance(batch.get(key), Tensor) or batch[key].ndim != 2:
            raise InputError(f"batches: batch {number} has no (batch, length) tensor {key!r}")
    return batch["attention_mask"].bool()


def check_stack(
    model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], *, edited: bool = False
) -> tuple[MakeStack, str]:
    """How the stacks of a model are made, and what to call that in a configuration.

    Fastprobe's own runner is taken where it is known to be the model; else the layers of the model itself, once it is
    seen, on the first sequences of a batch, that in their own order they are the model. Where a step is an edited
    layer, it is those, too: its edits are made in them.

    Raises:
        UnsupportedModelError: they are not.
        InputError: the batch has no token.
    """
    some = batch["attention_mask"].bool().any(1).nonzero()[:2, 0]
    if not len(some):
        raise InputError("batches: the first one is nothing but padding; leave such batches out")
    few = select(without_labels(batch), some)
    make, not_flat = (LayerStack.record, "a layer is edited") if edited else stack_of(model, points, few)
    if not not_flat:
        return make, "encoder"
    stack = LayerStack.record(model, points, few)
    state = stack.stem
    for layer in range(len(stack)):
        state = stack.apply(layer, state)
    mine, own = stack.head(state)[0], model(**stack.batch)[0]
    mask = few["attention_mask"].bool()
    error = float((mine - own)[mask].norm() / own[mask].norm())
    if math.isnan(error):
        raise UnsupportedModelError(f"{type(model).__name__}: {why_not_finite(model)}")
    if not error <= TOLERANCE[own.dtype]:
        raise UnsupportedModelError(
            f"{type(model).__name__}: its layers, run one after the other, are off from the model by {error:.1e}; "
            "something happens between them that is not known here"
        )
    return make, f"modules of the model ({not_flat})"
