"""Replace calls of modules for the time of a block. Weights and hooks stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.models.caches import fresh_caches
from fastprobe.models.calling import Call, first_input, first_tensor, inputs_of, named_errors
from fastprobe.runtime.random_state import random_state_kept

Run = Callable[[int, Tensor, Call], Tensor]
"""Replacement of a layer: from its number, the hidden states and its other arguments to its output."""


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another ``forward`` inside the block and restore theirs on exit."""
    with _replaced("forward", forwards):
        yield


@contextmanager
def _replaced(name: str, values: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules an attribute inside the block and restore theirs on exit."""
    before: dict[nn.Module, Any] = {module: vars(module).get(name) for module in values}
    try:
        for module, value in values.items():
            vars(module)[name] = value
        yield
    finally:
        for module, value in before.items():
            if value is None:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = value


@contextmanager
def replaced_layers(layers: Sequence[nn.Module], run: Run) -> Iterator[None]:
    """Call ``run(layer, state, (other args, other kwargs))`` instead of each layer inside the block."""
    with intercepted_layers(layers, run, lambda layer: nullcontext(False)):
        yield


@contextmanager
def observed_layers(layers: Sequence[nn.Module], receive: Run) -> Iterator[None]:
    """Call ``receive(layer, state, (other args, other kwargs))`` before each layer inside the block; then it runs."""

    def before(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            others = {key: value for key, value in kwargs.items() if args or key != "hidden_states"}
            receive(index, first_input(args, kwargs), (args[1:], others))

        return hook

    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.enter_context(layer.register_forward_pre_hook(before(index), with_kwargs=True))
        yield


@contextmanager
def intercepted_layers(
    layers: Sequence[nn.Module], run: Run, as_is: Callable[[int], AbstractContextManager[bool]]
) -> Iterator[None]:
    """Call ``run`` instead of each layer inside the block, except for calls that are to run the layer itself.

    Calls are intercepted before the hooks of a layer, so its hooks see only the calls that run the layer itself.

    Args:
        layers: the layers of a model.
        run: the replacement.
        as_is: context manager around each call of a layer; the layer itself runs if its value is true.
    """

    def call_of(index: int, layer: Any) -> Callable[..., Any]:
        original = layer._compiled_call_impl or layer._call_impl

        def call(*args: Any, **kwargs: Any) -> Any:
            with as_is(index) as unchanged:
                if unchanged:
                    return original(*args, **kwargs)
            extras = _extras(layer, args, kwargs)
            state = first_input(args, kwargs)
            others = {key: value for key, value in kwargs.items() if args or key != "hidden_states"}
            out = run(index, state, (args[1:], others))
            return out if extras is None else (out, *[None] * extras)

        return call

    # torch.nn.Module calls this attribute first; torch.compile uses it too, and copies of a module do not get it.
    with _replaced("_compiled_call_impl", {layer: call_of(index, layer) for index, layer in enumerate(layers)}):
        yield


@contextmanager
def without_hooks(module: nn.Module) -> Iterator[None]:
    """Take the forward hooks off a module and all modules inside it for the time of a block."""
    hooks: list[dict[int, Any]] = [
        found for inner in module.modules() for found in (inner._forward_pre_hooks, inner._forward_hooks) if found
    ]
    kept = [dict(found) for found in hooks]
    try:
        for found in hooks:
            found.clear()
        yield
    finally:
        for found, before in zip(hooks, kept, strict=True):
            found.update(before)


_EXTRAS: dict[Hashable, int | None] = {}
"""Class and options of a layer -> number of values that it returns after the hidden states; ``None`` for a tensor.

Measured, as versions and families differ.
"""


def _extras(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Return how many values a layer returns after the hidden states.

    The first call for a class runs the layer once, with copies of its caches and without hooks.
    """
    options = tuple((key, value) for key, value in kwargs.items() if isinstance(value, bool))
    if (key := (type(layer), options)) not in _EXTRAS:
        args, kwargs = fresh_caches((args, kwargs))
        with random_state_kept(), without_hooks(layer), torch.no_grad():
            found = layer.forward(*args, **kwargs)
        _EXTRAS[key] = None if isinstance(found, Tensor) else len(found) - 1
    return _EXTRAS[key]


def without_caches(call: Call) -> Call:
    """Return the arguments of a layer with ``None`` for each key-value cache."""

    def kept(value: Any) -> Any:
        return None if hasattr(value, "get_seq_length") else value

    args, kwargs = call
    return tuple(map(kept, args)), {key: kept(value) for key, value in kwargs.items()}


def final_state(model: nn.Module, layers: Sequence[nn.Module], batch: Mapping[str, Any]) -> tuple[Tensor, Any]:
    """Return the output of the last layer in a forward pass of a model, and the output of the model."""
    found: list[Tensor] = []
    with named_errors(model), layers[-1].register_forward_hook(lambda *call: found.append(first_tensor(call[2]))):
        out = model(**inputs_of(batch))
    return found[-1], out


def output_for(model: nn.Module, layers: Sequence[nn.Module], batch: Mapping[str, Any], state: Tensor) -> Any:
    """Return the output of a model whose last layer gives ``state`` and whose other layers do not run."""
    last = len(layers) - 1
    with replaced_layers(layers, lambda layer, passed, _: state if layer == last else passed):
        return model(**inputs_of(batch))
