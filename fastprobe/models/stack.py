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
from fastprobe.data.checks import attended_mask
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import (
    Call,
    body_of,
    cache_options,
    first_tensor,
    inputs_of,
    named_errors,
    never_ran,
    without_cache,
)
from fastprobe.models.copies import copies_agree, pattern_of, repeated, two_sequences
from fastprobe.models.forwards import observed_layers, output_for, replaced_layers, without_caches
from fastprobe.models.masked_head import MaskedHead
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.self_changes import put_back
from fastprobe.models.short_batches import short_batch
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
    step = 1

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
        ran: list[int] = []

        def store(layer: int, state: Tensor, call: Call) -> Tensor:
            ran.append(layer)
            states.append(state)
            calls.append(without_caches(call))
            return state

        if points.carries == "another":
            raise UnsupportedModelError(
                f"{type(model).__name__}: its layers hand on a second state besides the hidden states, so they cannot "
                "run in another order"
            )
        note = observed_layers if points.carries else replaced_layers
        with named_errors(model), note(points.layers, store):
            *options, last = cache_options(body)
            for option in options:
                try:
                    body(**inputs_of(batch) | option)
                    break
                except TypeError as error:
                    if "use_cache" not in str(error):
                        raise
                for found in (calls, states, ran):
                    found.clear()
            else:
                body(**inputs_of(batch) | last)
        if missing := never_ran(model, ran, len(points.layers)):
            raise UnsupportedModelError(missing)
        if ran != list(range(len(points.layers))):
            raise UnsupportedModelError(
                f"{type(model).__name__}: each layer must run once in a forward pass, in turn, but they ran in the "
                f"order {', '.join(map(str, ran))}"
            )
        return cls(model, points, batch, states[0], calls, first, checked)

    @classmethod
    def record_short(cls, model: nn.Module, points: ModelPoints, batch: Mapping[str, Any]) -> LayerStack | None:
        """Return the stack of two sequences of a batch, cut to a few tokens.

        Returns:
            the stack; ``None`` if the batch has one sequence or is as short, or if the model does not run so short a
            batch as it runs others.
        """
        short = short_batch(batch)
        if short is None:
            return None
        with put_back(model) as changes:
            try:
                stack = cls.record(model, points, short)
            except Exception:  # of the model's code, which may raise anything
                return None
        return None if changes.found or stack.stem.shape[:2] != attended_mask(short).shape else stack

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
        with named_errors(self.model):
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
            stack = self._smaller(pattern)
            mask = attended_mask(stack.batch)
            self._checked[pattern] = copies_agree(stack._run, len(stack), stack.stem, mask)
        return self._checked[pattern]

    def _smaller(self, pattern: Hashable) -> LayerStack:
        """Return the stack of a short batch whose arguments have the same pattern; if there is none, a longer one."""
        short = LayerStack.record_short(self.model, self.points, self.batch)
        if short is not None and short._pattern == pattern:
            return short
        if len(self.stem) > 2:
            few = select(self.batch, two_sequences(attended_mask(self.batch)))
            longer = LayerStack.record(self.model, self.points, few)
            if longer._pattern == pattern:
                return longer
        return self

    @cached_property
    def _pattern(self) -> Hashable | None:
        """Which arguments are repeated, ``None`` if some cannot be."""
        batch = len(self.stem)
        pattern = pattern_of(tuple(self.calls), batch)
        return None if pattern is None else (batch == 1, pattern)
