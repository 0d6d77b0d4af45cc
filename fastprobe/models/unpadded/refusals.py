"""Models and batches that the unpadded encoder refuses. It accepts exact modules of known classes only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from fastprobe.models.bert_families import BERT_FAMILIES
from fastprobe.models.calling import body_of

BATCH_KEYS = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
"""Arguments that a batch may have."""

_ATTENTION = {"eager", "sdpa", "flash_attention_2", "flash_attention_3"}
"""Implementations of Transformers that compute the same attention."""

_TORCH_CLASSES = {nn.Embedding, nn.Linear, nn.LayerNorm, nn.Dropout, nn.ModuleList}
_ACTIVATION_FILES = ("transformers.activations", "torch.nn.modules.activation")


def encoder_refusal(model: nn.Module, batch: Mapping[str, Any]) -> str | None:
    """Return why the unpadded encoder refuses a model on batches like this one, else ``None``.

    Args:
        model: the Hugging Face model, in evaluation mode.
        batch: arguments of the model.
    """
    body = body_of(model)
    family = BERT_FAMILIES.get(type(body).__module__, "")
    if not family or type(body).__name__ != f"{family}Model":
        return f"{type(body).__name__} is not one of {', '.join(f'{name}Model' for name in BERT_FAMILIES.values())}"
    config = body.config
    if config.is_decoder or config.add_cross_attention:
        return "it is configured as a decoder"
    if (kind := getattr(config, "position_embedding_type", "absolute")) != "absolute":
        return f"its position embeddings are {kind}, not absolute"
    if (kind := getattr(config, "_attn_implementation", "eager")) not in _ATTENTION:
        return f"its attention implementation {kind!r} is not one of {', '.join(sorted(_ATTENTION))}"
    if unknown := {key for key, value in batch.items() if value is not None} - BATCH_KEYS:
        return f"batches have {', '.join(sorted(unknown))}"
    if torch.is_autocast_enabled(batch["input_ids"].device.type):
        return "autocast is on"
    parts = {name: module for name, module in body.named_modules() if name.partition(".")[0] != "pooler"}
    if reason := _unknown_module(parts, type(body).__module__):
        return reason
    return _unusable(parameter for name, module in parts.items() for parameter in module.parameters(recurse=False))


def _unknown_module(parts: Mapping[str, nn.Module], file: str) -> str | None:
    """Return why a module is refused (unknown class, hook, replaced forward or training mode), else ``None``."""
    if nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks:
        return "there are hooks on all modules"
    for name, module in parts.items():
        kind = type(module)
        if not (kind in _TORCH_CLASSES or kind.__module__ == file or kind.__module__ in _ACTIVATION_FILES):
            return f"{name} is a {kind.__module__}.{kind.__name__}"
        if "forward" in vars(module):
            return f"the forward of {name or 'the model'} was replaced"
        # Transformers leaves hooks that do nothing unless a call asks for hidden states.
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        if any(getattr(hook, "__module__", "") != "transformers.utils.output_capturing" for hook in hooks):
            return f"there is a hook on {name or 'the model'}"
        if module.training:
            return f"{name or 'the model'} is in training mode"
    return None


def _unusable(parameters: Iterable[nn.Parameter]) -> str | None:
    """Return why parameters of another class or of several dtypes or devices are refused, else ``None``."""
    parameters = [*parameters]
    # A quantised or distributed weight is a subclass, whose memory is not the matrix that its shape and dtype promise.
    if special := {type(one).__name__ for one in parameters if type(one) is not nn.Parameter}:
        return f"it has weights of class {', '.join(sorted(special))}"
    kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
    if len(kinds) > 1 or any(device.type == "meta" for _, device in kinds):
        return f"its weights are of several kinds: {', '.join(sorted(f'{d} on {where}' for d, where in kinds))}"
    return None
