"""A transformer on one batch as stem, layers and head, by its own modules.

Nothing here depends on the model family. The model's own forward pass runs once with layers that return their input
and store their other arguments (mask, rotary embeddings, ...). These arguments belong to the layer and not to its
place, so a layer keeps them wherever it runs. The head is the same pass with a given output of the last layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import body_of, cache_options, first_tensor, without_cache
from fastprobe.models.forwards import Call, output_for, replaced_layers, without_caches
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.sublayers import run_sublayer
from fastprobe.models.unpadded.head import MaskedHead
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
    ):
        self.model, self.points, self.batch, self.stem, self.first = model, points, dict(batch), stem, first
        self._calls = calls

    @classmethod
    def record(cls, model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], first: int = 0) -> LayerStack:
        """Return the stack of a model on a batch, from one forward pass in which each layer returns its input.

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
        return cls(model, points, batch, states[0], calls, first)

    def __len__(self) -> int:
        return len(self._calls)

    def apply(self, step: Step, state: Tensor, copies: int = 1) -> Tensor:
        """Run one step of an order; see ``Stack.apply``."""
        if isinstance(step, Parallel):
            return torch.stack([self.apply(layer, state, copies) for layer in step.layers]).mean(0)
        if isinstance(step, Sublayer):
            return run_sublayer(self.points, step, state, lambda: self.apply(step.layer, state, copies))
        if not isinstance(step, int):
            return step.apply(self, state, copies)
        args, kwargs = self._calls[step]
        args, kwargs = self._repeated(args, copies), self._repeated(kwargs, copies)
        return first_tensor(self.points.layers[step](state, *args, **kwargs))

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

    def _repeated(self, value: Any, copies: int) -> Any:
        """Repeat an argument of a layer for ``copies`` states, where it has one entry a sequence."""
        if copies == 1:
            return value
        if isinstance(value, Tensor):
            batch = len(self.stem)
            return torch.cat([value] * copies) if value.ndim and len(value) == batch > 1 else value
        if isinstance(value, dict):
            return {key: self._repeated(inner, copies) for key, inner in value.items()}
        if isinstance(value, tuple):
            return tuple(self._repeated(inner, copies) for inner in value)
        return value
