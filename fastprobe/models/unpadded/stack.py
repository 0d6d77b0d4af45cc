"""A BERT-family encoder on one batch as stem, layers and head, on tokens without padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.checks import attended_mask
from fastprobe.models.calling import inputs_of
from fastprobe.models.forwards import output_for
from fastprobe.models.masked_head import MaskedHead
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.unpadded.encoder import Encoder
from fastprobe.models.unpadded.tokens import UnpaddedTokens
from fastprobe.orders import Parallel, Step, Sublayer


class UnpaddedStack:
    """Stack that runs :class:`Encoder`; states are ``(copies * N, width)`` for N tokens without padding.

    The contract is :class:`~fastprobe.models.protocols.Stack`. Edited layers are not supported; they edit modules.

    Args:
        model: a model for which ``fastprobe.models.runner.stack_for`` selects this class.
        points: its resolved points.
        batch: arguments of the model, on its device.
        first: number of the batch's first sequence in its stream.
    """

    step = 1

    def __init__(self, model: nn.Module, points: ModelPoints, batch: Mapping[str, Any], first: int = 0):
        self.model, self.points, self.batch, self.first = model, points, dict(batch), first
        self.masked_head = MaskedHead.of(model)
        self._tokens = UnpaddedTokens.of(attended_mask(batch))
        self._encoder = Encoder(model, points)
        self.stem = self._encoder.stem(inputs_of(batch), self._tokens)
        # (batch * length,): row of a state for each position of the padded batch
        self._row = torch.empty(attended_mask(batch).numel(), dtype=torch.int64, device=self.stem.device)
        self._row[self._tokens.index] = torch.arange(len(self._tokens), device=self.stem.device)

    def __len__(self) -> int:
        return len(self._encoder.layers)

    def apply(self, step: Step, state: Tensor, copies: int = 1) -> Tensor:
        """Run one step of an order; see ``Stack.apply``."""
        if isinstance(step, Parallel):
            return torch.stack([self.apply(layer, state, copies) for layer in step.layers]).mean(0)
        if isinstance(step, Sublayer):
            layer = self._encoder.layers[step.layer]
            return layer.ffn(state) if step.part == "ffn" else layer.attention(state, self._tokens, copies)
        assert isinstance(step, int)
        return self._encoder.layers[step](state, self._tokens, copies)

    def head(self, state: Tensor) -> Any:
        """Return the output of the model for padded final hidden states; see ``Stack.head``."""
        return output_for(self.model, self.points.layers, self.batch, state)

    def rows(self, state: Tensor, at: Tensor) -> Tensor:
        """Return the rows of a state at some tokens; see ``Stack.rows``."""
        return state.index_select(0, self._row[at.flatten()])

    def by_row(self, values: Tensor) -> Tensor:
        """Return the value of each token; see ``Stack.by_row``."""
        return self._tokens.unpad(values)

    def padded(self, state: Tensor) -> Tensor:
        """Return a state as ``(batch, length, width)``, with zeros at padding."""
        return self._tokens.pad(state)
