"""A BERT-family encoder on one batch as stem and layers, on tokens without padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.models.resolve import ModelPoints
from fastprobe.models.stack import LayerStack, has_language_head
from fastprobe.models.unpadded.encoder import Encoder
from fastprobe.models.unpadded.head import MaskedHead
from fastprobe.models.unpadded.recorder import FlatRecorder, recorder_for
from fastprobe.models.unpadded.tokens import FlatTokens
from fastprobe.orders import Parallel, Step, Sublayer


class FlatStack:
    """What :class:`~fastprobe.models.stack.LayerStack` is, with states ``(copies * N, width)``.

    Args:
        model: a model for which :func:`stack_of` gives this class.
        points: where its layers are.
        batch: what the model is called with, on its device.
        first: number of the batch's first sequence in the stream that it is from.
    """

    def __init__(self, model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], first: int = 0):
        self.model, self.points, self.batch, self.first = model, points, dict(batch), first
        self.masked_head = MaskedHead.of(model)
        self._flat = FlatTokens.of(batch["attention_mask"].bool())
        self._encoder = Encoder(model, points)
        self.stem = self._encoder.stem(batch, self._flat)
        self._row = torch.empty(batch["attention_mask"].numel(), dtype=torch.int64, device=self.stem.device)
        self._row[self._flat.index] = torch.arange(len(self._flat), device=self.stem.device)

    def __len__(self) -> int:
        return len(self._encoder.layers)

    def apply(self, step: Step, state: Tensor, copies: int = 1) -> Tensor:
        """Run one step; see ``LayerStack.apply``."""
        if isinstance(step, Parallel):
            return torch.stack([self.apply(layer, state, copies) for layer in step.layers]).mean(0)
        if isinstance(step, Sublayer):
            layer = self._encoder.layers[step.layer]
            return layer.ffn(state) if step.part == "ffn" else layer.attention(state, self._flat, copies)
        assert isinstance(step, int)  # edited layers run in the model's own modules
        return self._encoder.layers[step](state, self._flat, copies)

    def rows(self, state: Tensor, at: Tensor) -> Tensor:
        """Tokens of a state; see ``LayerStack.rows``."""
        return state.index_select(0, self._row[at.flatten()])

    def by_row(self, values: Tensor) -> Tensor:
        """What a batch says of its tokens, ``(batch, length)``, as one for each row of a state."""
        return self._flat.flatten(values)

    def padded(self, state: Tensor) -> Tensor:
        """A state as ``(batch, length, width)``, zero where there is no token."""
        return self._flat.restore(state)


MakeStack = Callable[..., LayerStack | FlatStack]
"""From a model, its points, a batch and the number of its first sequence."""


@torch.no_grad()
def stack_of(model: nn.Module, points: ModelPoints, batch: Mapping[str, Any]) -> tuple[MakeStack, str]:
    """How the stacks of a model are made, and why not of tokens without padding; ``""`` where they are.

    Args:
        model: the Hugging Face model, in evaluation mode.
        points: where its layers are.
        batch: a few sequences of those that are to be run.
    """
    kind, reason = recorder_for(model, points, batch)
    if kind is not FlatRecorder:
        return LayerStack.record, reason
    if has_language_head(model):
        head = MaskedHead.of(model)
        if head is None:
            return LayerStack.record, f"the head of {type(model).__name__} is not known"
        if reason := _head_is_off(model, points, batch, head):
            return LayerStack.record, reason
    return FlatStack, ""


def _head_is_off(model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], head: MaskedHead) -> str:
    """That the head, on the model's own final states, does not give its logits, or ``""``."""
    states: list[Tensor] = []
    handle = points.layers[-1].register_forward_hook(lambda *args: states.append(args[2]))
    try:
        logits = model(**batch).logits
    finally:
        handle.remove()
    mask = batch["attention_mask"].bool()
    state = states[0] if isinstance(states[0], Tensor) else states[0][0]
    own = logits[mask]
    mine = nn.functional.linear(head.features(state[mask]), head.weight, head.bias)
    error = float((mine - own).norm() / own.norm())
    return "" if error <= 1e-4 or mine.dtype.itemsize < 4 else f"its head is off from the model's by {error:.1e}"
