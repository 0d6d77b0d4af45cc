"""Hidden states in the output of a model whose layers ran in another order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastprobe.errors import UnsupportedModelError


def with_executed_states(output: Any, stem: Tensor, states: Sequence[Tensor] | None) -> Any:
    """Return the output of a model with the hidden states in the order in which its layers ran.

    They are the stem and the state after every step. The last one stays as the model gives it, often after a norm. A
    loop that collects states itself has seen the stem only, because its layers return their input.

    Args:
        output: of a forward pass; an object of Transformers, a dict or a tuple. Other outputs stay as they are.
        stem: the state that the first step received.
        states: the state after every step; ``None`` if they were not kept.

    Raises:
        UnsupportedModelError: the output has hidden states, and they were not kept.
    """
    keys: Sequence[Any]
    if isinstance(output, Mapping):
        keys = [*output]
    elif type(output) is tuple:
        keys = range(len(output))
    else:
        return output
    for key in keys:
        value = output[key]
        if not _starts_with(value, stem):
            continue
        if states is None:
            raise UnsupportedModelError(
                "output_hidden_states: must be given by name inside of permute_layers, or in the configuration"
            )
        executed = (stem, *states[:-1], value[-1])
        if isinstance(output, tuple):
            output = (*output[:key], executed, *output[key + 1 :])
        else:
            output[key] = executed
    return output


def equal_states(state: Tensor, other: Tensor) -> bool:
    """Return whether two states are equal. They may be on different devices."""
    return state is other or (state.shape == other.shape and torch.equal(state, other.to(state.device)))


def _starts_with(value: Any, stem: Tensor) -> bool:
    """Return whether a value holds states of every layer, the first of which is the stem."""
    if not isinstance(value, tuple | list) or len(value) < 2 or not all(isinstance(one, Tensor) for one in value):
        return False
    return value[0].dtype == stem.dtype and equal_states(value[0], stem)
