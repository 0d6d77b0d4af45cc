"""Check that the layers of a live model can run apart from its own order, on the first sequences of a call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastprobe.errors import UnsupportedModelError
from fastprobe.models.caches import fresh_caches
from fastprobe.models.calling import Call, evaluating, first_tensor
from fastprobe.models.copies import first_sequences, pattern_of
from fastprobe.models.forwards import without_caches, without_hooks
from fastprobe.models.memoryless import check_memoryless, run_backwards, states_of
from fastprobe.models.stack import LayerStack
from fastprobe.orders import Sublayer
from fastprobe.runtime.random_state import random_state_kept

SEQUENCES = 2
"""Sequences of a call that are checked."""


class _Alone(LayerStack):
    """Stack in which no run of a layer changes a cache."""

    def _run(self, layer: int, state: Tensor, copies: int) -> Tensor:
        args, kwargs = fresh_caches(self.calls[layer])
        return first_tensor(self.points.layers[layer](state, *args, **kwargs))


def check_layers_alone(stack: LayerStack, calls: Sequence[Call], parts: Iterable[Sublayer]) -> None:
    """Raise an error if a layer gives another output when it runs again, after the layers ran in another order.

    Costs three runs of every layer on two sequences. The layers run in evaluation mode, without hooks, with copies of
    empty caches. Random generators stay as they are.

    Args:
        stack: the model on the inputs of a call.
        calls: other arguments of each layer.
        parts: halves of layers that the order has; each runs once, because their first run may run more than they need.

    Raises:
        UnsupportedModelError: a layer gives another output, writes into its input, or cannot run by itself.
    """
    stem, batch = stack.stem.detach(), len(stack.stem)
    if batch > SEQUENCES and pattern_of(tuple(map(without_caches, calls)), batch) is not None:
        stem, calls = stem[:SEQUENCES], [first_sequences(call, batch, SEQUENCES) for call in calls]
    alone = _Alone(stack.model, stack.points, {}, stem, calls)
    with evaluating(stack.model), without_hooks(stack.model), random_state_kept(), torch.no_grad():
        try:
            states = states_of(alone)
            run_backwards(alone, states[-1].clone())
            check_memoryless(alone, states, torch.ones(stem.shape[:-1], dtype=torch.bool, device=stem.device))
        except UnsupportedModelError as error:
            raise error.__cause__ or error from None  # an error of the model's code, as the model itself raises it
        for part in parts:
            alone.apply(part, stem)
