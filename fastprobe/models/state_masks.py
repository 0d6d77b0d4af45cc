"""Masks of the states of encoders that read images or sound: one entry for each position, not for each input."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.checks import ATTENDED, check_token_mask
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.calling import (
    StopForward,
    body_of,
    device_of,
    evaluating,
    first_input,
    inputs_of,
    named_errors,
    to_device,
    without_cache,
)
from fastprobe.models.examples import input_of
from fastprobe.models.resolve import ModelPoints

BY_MASK, BY_LENGTH = "_get_feature_vector_attention_mask", "_get_feat_extract_output_lengths"
"""Functions of models that shorten their inputs: from a mask to a mask, and from lengths to lengths."""


class StateMasks:
    """Masks of the positions that are not padding, for a model that reads no token ids.

    Without an ``attention_mask`` every position counts. A model that shortens its inputs, as by convolutions, takes a
    mask of samples or frames, and its own function brings it to the length of the states. Other models take a mask of
    the states.

    Args:
        model: a Hugging Face model.
        points: its resolved points.
    """

    def __init__(self, model: nn.Module, points: ModelPoints):
        self._body, self._points = body_of(model), points
        self._device = device_of(model)
        self.key = input_of(self._body)
        self._lengths: dict[torch.Size, int] = {}  # shape of one input -> number of its states

    def added(self, batch: Any, number: int) -> dict[str, Any]:
        """Return a batch with the mask of its states.

        Args:
            batch: with the input of the model, and perhaps ``attention_mask`` and ``token_mask``.
            number: of the batch, for error messages.

        Raises:
            InputError: the batch is no dict, its input is missing, or a mask has another form.
            UnsupportedModelError: the model cannot run the batch.
        """
        if not isinstance(batch, Mapping):
            raise InputError(f"batches: batch {number} must be a dict of tensors, got a {type(batch).__name__}")
        values = batch.get(self.key)
        if not isinstance(values, Tensor) or values.ndim < 2 or not values.is_floating_point():
            has = ", ".join(map(str, batch)) or "nothing"
            raise InputError(
                f"batches: batch {number} must have {self.key!r}, the floating tensor that {type(self._body).__name__} "
                f"reads; it has {has}"
            )
        if not len(values):
            return {**batch, ATTENDED: torch.zeros(0, 0, dtype=torch.bool)}
        attended = self._attended(batch, values, number)
        check_token_mask(batch, attended, number)
        return {**batch, ATTENDED: attended}

    def _attended(self, batch: Mapping[str, Any], values: Tensor, number: int) -> Tensor:
        """Return the positions that are not padding, ``(batch, length)`` bool."""
        count, mask = len(values), batch.get("attention_mask")
        if mask is not None:
            usable = isinstance(mask, Tensor) and mask.ndim == 2 and len(mask) == count
            if not usable or not ((mask == 0) | (mask == 1)).all():
                raise InputError(
                    f"batches: attention_mask of batch {number} must be a tensor of shape ({count}, length), 1 at what "
                    "is attended to and 0 at padding"
                )
        length = self._length(batch, values)
        if mask is None:
            return torch.ones(count, length, dtype=torch.bool, device=values.device)
        if not self._shortens and mask.shape[1] == length:
            return mask.bool()
        if not self._shortens or mask.shape[1] not in values.shape[1:]:
            wanted = f"that of {self.key}, {tuple(values.shape)}" if self._shortens else f"{length}, that of the states"
            raise InputError(
                f"batches: attention_mask of batch {number} must have the length that {type(self._body).__name__} "
                f"reads, {wanted}, got {mask.shape[1]}; leave it out if there is no padding"
            )
        if (mask[:, 1:] > mask[:, :-1]).any():
            raise InputError(
                f"batches: attention_mask of batch {number} must be 1 up to the end of each input and 0 after it, "
                f"because its {mask.shape[1]} entries belong to {length} states; pad on the right"
            )
        found = self._shortened(mask.long(), length)
        if found.shape != (count, length):
            raise UnsupportedModelError(
                f"{type(self._body).__name__}: its own function gives a mask of shape {tuple(found.shape)} for states "
                f"of shape {(count, length)}; leave attention_mask out"
            )
        return found.bool() & (mask.sum(1, keepdim=True) > 0)

    @property
    def _shortens(self) -> bool:
        """True if the model has a function from the mask of its inputs to that of its states."""
        return any(hasattr(self._body, name) for name in (BY_MASK, BY_LENGTH))

    def _shortened(self, mask: Tensor, length: int) -> Tensor:
        """Return a mask of inputs as that of states, by the model's own function."""
        if hasattr(self._body, BY_MASK):
            return getattr(self._body, BY_MASK)(length, mask)
        lengths = getattr(self._body, BY_LENGTH)(mask.sum(1))
        return torch.arange(length, device=mask.device) < lengths[:, None]

    def _length(self, batch: Mapping[str, Any], values: Tensor) -> int:
        """Return the number of states of each input, from one that runs up to the first layer."""
        if (shape := values.shape[1:]) not in self._lengths:
            one = {
                key: value[:1] if isinstance(value, Tensor) and len(value) == len(values) else value
                for key, value in inputs_of(batch).items()
            }
            self._lengths[shape] = self._measured(to_device(one, self._device))
        return self._lengths[shape]

    def _measured(self, batch: Mapping[str, Any]) -> int:
        found: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(first_input(args, kwargs))
            raise StopForward

        first = self._points.layers[0]
        with (
            named_errors(self._body),
            evaluating(self._body),
            torch.no_grad(),
            first.register_forward_pre_hook(stop, with_kwargs=True),
            suppress(StopForward),
        ):
            self._body(**batch, **without_cache(self._body))
        if not found or found[0].ndim != 3 or len(found[0]) != 1:
            got = f"states of shape {tuple(found[0].shape)}" if found else "no states"
            raise UnsupportedModelError(
                f"{type(self._body).__name__}: its first layer receives {got} for one input of {self.key}; points and "
                "orders need states (batch, length, width)"
            )
        return found[0].shape[1]
