"""Call a Hugging Face model: its mode, its device, its inputs and its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.checks import ATTENDED, TOKEN_MASK
from fastprobe.errors import FastprobeError, InputError, UnsupportedModelError

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a layer besides the hidden states: positional ones and those by name."""


class StopForward(BaseException):
    """End a forward pass early. It is no ``Exception``, so no handler inside a model catches it."""


def uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Run what ``torch.compile`` made of a model as plain Python inside the block.

    Compiled code ignores hooks and replaced forwards. A model without compiled parts costs nothing.
    """
    compiled = any(
        hasattr(module, "_orig_mod")
        or any(
            hasattr(vars(module).get(name), "_torchdynamo_orig_callable") for name in ("_compiled_call_impl", "forward")
        )
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a model uncompiled, in evaluation mode, without cache and with named outputs, and restore all on exit."""
    training = [module for module in model.modules() if module.training]
    configs: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    cached = [config for config in configs if getattr(config, "use_cache", False) is True]
    in_tuples = [config for config in configs if getattr(config, "return_dict", True) is False]
    model.eval()
    for config in cached:
        config.use_cache = False
    for config in in_tuples:
        config.return_dict = True
    try:
        with uncompiled(model):
            yield
    finally:
        for config in cached:
            config.use_cache = True
        for config in in_tuples:
            config.return_dict = False
        for module in training:  # one by one, because a model in training mode may hold modules in evaluation mode
            module.training = True


@contextmanager
def named_errors(model: nn.Module) -> Iterator[None]:
    """Raise an error of a model's code as one line that names the model.

    Raises:
        UnsupportedModelError: the model's code raised an error other than one of memory.
    """
    try:
        yield
    except (FastprobeError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise UnsupportedModelError(
            f"{type(model).__name__}: its forward pass fails on this batch ({type(error).__name__}: {said})"
        ) from error


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a model takes its batches on: that of its first parameter which is somewhere.

    Accelerate keeps offloaded weights on ``meta`` between calls. The device is then the one that it runs them on.

    Raises:
        InputError: all weights are on ``meta``, and nothing loads them.
    """
    devices = {parameter.device: None for parameter in model.parameters() if parameter.device.type != "meta"}
    if devices:
        return next(iter(devices))
    for module in model.modules():
        if (device := _execution_device(getattr(module, "_hf_hook", None))) is not None:
            return device
    if any(True for _ in model.parameters()):
        raise InputError(f"model: the weights of {type(model).__name__} are on meta, without numbers; load them first")
    return torch.device("cpu")


def _execution_device(hook: Any) -> torch.device | None:
    """Return the device on which a hook of Accelerate runs its module, or ``None`` if it names none."""
    for one in getattr(hook, "hooks", [hook]):
        if (device := getattr(one, "execution_device", None)) is not None:
            return torch.device(device)
    return None


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


def inputs_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model takes of a batch: all but labels and masks of its tokens."""
    return {key: value for key, value in batch.items() if key not in ("labels", TOKEN_MASK, ATTENDED)}


def with_decoder_inputs(body: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return a batch whose tokens the decoder of an encoder-decoder reads, too, unless it has others for it."""
    takes_more = "decoder_input_ids" in arguments_of(body)[0]
    if not takes_more or "input_ids" not in batch or batch.get("decoder_input_ids") is not None:
        return dict(batch)
    return {**batch, **{f"decoder_{key}": batch[key] for key in ("input_ids", "attention_mask")}}


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
    if isinstance(result, Mapping):
        return next(iter(result.values()))
    return result if isinstance(result, Tensor) else result[0]


def logits_of(out: Any) -> Tensor:
    """Return the logits of tokens in the output of a model with a language-model head."""
    return out.logits if hasattr(out, "logits") else out.prediction_logits  # of BertForPreTraining


def with_first_tensor(result: Any, states: Tensor) -> Any:
    """Return the output of a module with other hidden states, in the form that the module gave it."""
    if isinstance(result, Tensor):
        return states
    if isinstance(result, Mapping):
        kind: Any = type(result)
        first = next(iter(result))
        return kind({**result, first: states})
    return [states, *result[1:]] if isinstance(result, list) else (states, *result[1:])


def never_ran(model: nn.Module, ran: Collection[int], depth: int) -> str:
    """Return which of the first ``depth`` layers of a model never ran in its forward pass, as a text; ``""`` if none.

    Args:
        model: for its name.
        ran: numbers of the layers that ran.
        depth: number of layers that should run.
    """
    missing = [str(layer) for layer in range(depth) if layer not in ran]
    if not missing:
        return ""
    return (
        f"{type(model).__name__}: layer{'s' * (len(missing) > 1)} {', '.join(missing)} never ran in its forward pass; "
        "turn off what skips layers (early exit, layer drop, a smaller num_hidden_layers)"
    )
