"""A transformer on one batch as stem, layers and head, by its own modules.

Nothing here depends on the model family. The model's own forward pass runs once with layers that return their input
and store their other arguments (mask, rotary embeddings, ...). These arguments belong to the layer and not to its
place, so a layer keeps them wherever it runs. The head is the same pass with a given output of the last layer.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.batches import select
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import body_of, cache_options, first_tensor, without_cache
from fastprobe.models.copies import copies_agree, pattern_of, repeated, two_sequences
from fastprobe.models.forwards import Call, output_for, replaced_layers, without_caches
from fastprobe.models.masked_head import MaskedHead
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.sublayers import run_sublayer
from fastprobe.orders import Parallel, Step, Sublayer


class LayerStack:
    """Stack of the modules of any supported model; states are ``(copies * batch, length, width)``.

    The contract is :class:`~fastprobe.models.protocols.Stack`.

    Args:
        model: a Hugging Face model in evaluation mode.
        points: its resolved points.
        batch: arguments of the model, on its device.
        stem: ``(batch, length, width)``, the state that the first layer receives.
        calls: other arguments of each layer.
        first: number of the batch's first sequence in its stream.
        checked: findings of a run about copies side by side, which its stacks share.
    """

    masked_head: MaskedHead | None = None

    def __init__(
        self,
        model: nn.Module,
        points: ModelPoints,
        batch: Mapping[str, Any],
        stem: Tensor,
        calls: Sequence[Call],
        first: int = 0,
        checked: dict[Hashable, bool] | None = None,
    ):
        self.model, self.points, self.batch, self.stem, self.first = model, points, dict(batch), stem, first
        self.calls, self._checked = calls, {} if checked is None else checked

    @classmethod
    def record(
        cls,
        model: nn.Module,
        points: ModelPoints,
        batch: Mapping[str, Any],
        first: int = 0,
        checked: dict[Hashable, bool] | None = None,
    ) -> LayerStack:
        """Return the stack of a model on a batch, from one forward pass in which each layer returns its input.

        Args:
            model: a Hugging Face model in evaluation mode.
            points: its resolved points.
            batch: arguments of the model, on its device.
            first: number of the batch's first sequence in its stream.
            checked: findings of a run about copies side by side, which its stacks share.

        Raises:
            UnsupportedModelError: a forward pass does not run every layer once.
        """
        body = body_of(model)
        batch = {**{key: value for key, value in batch.items() if key != "use_cache"}, **without_cache(body)}
        calls: list[Call] = []
        states: list[Tensor] = []

        def store(layer: int, state: Tensor, call: Call) -> Tensor:
            states.append(state)
            calls.append(without_caches(call))
            return state

        with replaced_layers(points.layers, store):
            *options, last = cache_options(body)
            for option in options:
                try:
                    body(**batch | option)
                    break
                except TypeError as error:
                    if "use_cache" not in str(error):
                        raise
                calls.clear()
                states.clear()
            else:
                body(**batch | last)
        if len(states) != len(points.layers):
            raise UnsupportedModelError(
                f"{type(model).__name__}: each layer must run once in a forward pass, but {len(states)} layers ran and "
                f"the model has {len(points.layers)}"
            )
        return cls(model, points, batch, states[0], calls, first, checked)

    def __len__(self) -> int:
        return len(self.calls)

    def apply(self, step: Step, state: Tensor, copies: int = 1) -> Tensor:
        """Run one step of an order; see ``Stack.apply``."""
        if copies > 1 and not self._may_repeat():
            return torch.cat([self.apply(step, one) for one in state.tensor_split(copies)])
        if isinstance(step, Parallel):
            return torch.stack([self.apply(layer, state, copies) for layer in step.layers]).mean(0)
        if isinstance(step, Sublayer):
            return run_sublayer(self.points, step, state, lambda: self.apply(step.layer, state, copies))
        if not isinstance(step, int):
            return step.apply(self, state, copies)
        return self._run(step, state, copies)

    def head(self, state: Tensor) -> Any:
        """Return the output of the model for final hidden states; see ``Stack.head``."""
        return output_for(self.model, self.points.layers, self.batch, state)

    def rows(self, state: Tensor, at: Tensor) -> Tensor:
        """Return the rows of a state at some tokens; see ``Stack.rows``."""
        return state[at]

    def by_row(self, values: Tensor) -> Tensor:
        """Return the value of each row, padding included; see ``Stack.by_row``."""
        return values.flatten()

    def padded(self, state: Tensor) -> Tensor:
        """Return the state, which is padded already."""
        return state

    def _run(self, layer: int, state: Tensor, copies: int) -> Tensor:
        """Run a layer on states side by side."""
        args, kwargs = repeated(self.calls[layer], len(self.stem), copies)
        return first_tensor(self.points.layers[layer](state, *args, **kwargs))

    def _may_repeat(self) -> bool:
        """Return whether copies of the batch may run side by side; checked once for each pattern of arguments."""
        if (pattern := self._pattern) is None:
            return False
        if pattern not in self._checked:
            stack = self
            if len(self.stem) > 2:
                few = select(self.batch, two_sequences(self.batch["attention_mask"].bool()))
                smaller = LayerStack.record(self.model, self.points, few)
                stack = smaller if smaller._pattern == pattern else self
            mask = stack.batch["attention_mask"].bool()
            self._checked[pattern] = copies_agree(stack._run, len(stack), stack.stem, mask)
        return self._checked[pattern]

    @cached_property
    def _pattern(self) -> Hashable | None:
        """Which arguments are repeated, ``None`` if some cannot be."""
        batch = len(self.stem)
        pattern = pattern_of(tuple(self.calls), batch)
        return None if pattern is None else (batch == 1, pattern)
