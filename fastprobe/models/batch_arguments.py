"""Arguments of a batch in the one form that every verb can select, reorder, merge and repeat."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from fastprobe.data.sample import CONSTANTS
from fastprobe.errors import InputError

OPTIONS = {
    "use_cache",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "logits_to_keep",
    "num_logits_to_keep",
}
"""Arguments that choose what a model returns. They change no state and no logit, so they are left out."""

BY_PLACE = {"position_ids", "token_type_ids"}
"""Arguments of one number a token. One row of them may serve all sequences."""

REFUSED = {
    "inputs_embeds": "pass input_ids only",
    "past_key_values": "pass whole sequences without a cache",
    "cache_position": "pass position_ids, (batch, length), if they are not 0, 1, 2, ...",
    "head_mask": "ablate heads by a hook of your own",
}
"""Arguments that belong to a call and not to sequences, with advice."""


def plain_arguments(batch: Mapping[str, Any], number: int, labels: Collection[str]) -> dict[str, Any]:
    """Return a batch whose tensors have one entry a sequence, or one for all.

    Options of the output and lists of texts are left out. Integers that no embedding takes, and masks of any dtype,
    become int64. One row of positions without its first dimension gets it.

    Args:
        batch: arguments of the model, with ``input_ids`` and ``attention_mask`` of one shape.
        number: of the batch, for the error message.
        labels: keys that the model does not get. They stay as they are.

    Raises:
        InputError: a tensor has neither one entry a sequence nor one for all, or an argument belongs to a whole call or
            is an object.
    """
    count, length = batch["input_ids"].shape
    plain: dict[str, Any] = {}
    for key, value in batch.items():
        if key in OPTIONS:
            continue
        if key in REFUSED and value is not None:
            raise InputError(f"batches: {key} of batch {number} must be left out; {REFUSED[key]}")
        if isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
            continue  # texts beside their tokens
        if not isinstance(value, Tensor) and not isinstance(value, CONSTANTS):
            raise InputError(
                f"batches: {key} of batch {number} must be a tensor or a constant, got a {type(value).__name__}; leave "
                "it out"
            )
        if not isinstance(value, Tensor) or key in labels:
            plain[key] = value
            continue
        if key in BY_PLACE and value.shape == (length,):
            value = value[None]
        if value.ndim == 0 or len(value) not in (1, count) or (key in BY_PLACE and value.ndim != 2):
            raise InputError(
                f"batches: {key} of batch {number} has the shape {tuple(value.shape)}, and the batch has {count} "
                f"sequences of {length} tokens; give it one entry a sequence, or leave it out"
            )
        plain[key] = value.long() if key == "attention_mask" or _is_rare_integer(value) else value
    return plain


def _is_rare_integer(value: Tensor) -> bool:
    """Return whether a tensor holds integers of a dtype that embeddings do not take."""
    kept = (torch.int32, torch.int64, torch.bool)
    return not value.is_floating_point() and not value.is_complex() and value.dtype not in kept
