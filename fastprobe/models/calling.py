"""Call a Hugging Face model: its mode, its device, its inputs and its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.models.offloaded import execution_device


class StopForward(BaseException):
    """End a forward pass early. It is no ``Exception``, so no handler inside a model catches it."""


def uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Run what ``torch.compile`` made of a model as plain Python inside the block.

    Compiled code ignores hooks and replaced forwards. A model without compiled parts costs nothing.
    """
    compiled = any(
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model uncompiled and in evaluation mode, with ``use_cache`` off, and restore all three on exit."""
    training = [module for module in model.modules() if module.training]
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    cached = [config for config in configs if getattr(config, "use_cache", False) is True]
    model.eval()
    for config in cached:
        config.use_cache = False
    try:
        with uncompiled(model):
            yield
    finally:
        for config in cached:
            config.use_cache = True
        for module in training:  # one by one, because a model in training mode may hold modules in evaluation mode
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter; for an offloaded one, the device that Accelerate brings it to."""
    device = next(model.parameters()).device
    return device if device.type != "meta" else execution_device(model) or device


def body_of(model: nn.Module) -> Any:
    """Return a model without its head; the model itself if it has none."""
    return getattr(model, "base_model", model)


def has_language_head(model: nn.Module) -> bool:
    """Return whether a model has a language-model head, that is, predicts tokens."""
    get = getattr(model, "get_output_embeddings", lambda: None)
    return get() is not None


def arguments_of(module: nn.Module) -> tuple[set[str], bool]:
    """Return the names of the arguments of a module, and whether it accepts others through ``**kwargs``."""
    parameters = inspect.signature(module.forward).parameters
    return {*parameters}, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def without_cache(body: nn.Module) -> dict[str, bool]:
    """Return the argument that turns off the key-value cache of a model, no argument for a model without cache."""
    return {"use_cache": False} if "use_cache" in arguments_of(body)[0] else {}


def cache_options(module: nn.Module) -> list[dict[str, bool]]:
    """Return the arguments to try in turn to turn off the cache of a module, until one is accepted.

    A module that hands ``**kwargs`` on may or may not accept ``use_cache`` there.
    """
    names, hands_on = arguments_of(module)
    if "use_cache" in names:
        return [{"use_cache": False}]
    inner = (arguments_of(other)[0] for other in module.modules() if other is not module)
    return [{"use_cache": False}, {}] if hands_on and any("use_cache" in names for names in inner) else [{}]


def without_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch without its labels, which a model without a head does not accept."""
    return {key: value for key, value in batch.items() if key != "labels"}


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Return a batch with its tensors on a device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the hidden states among the arguments of a module."""
    return args[0] if args else kwargs["hidden_states"]


def first_tensor(result: Any) -> Tensor:
    """Return the hidden states in the output of a module.

    Layers of Transformers 5 return a tensor, layers of Transformers 4 a tuple that starts with it.
    """
    return result if isinstance(result, Tensor) else result[0]
