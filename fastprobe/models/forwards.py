"""Replace the ``forward`` of modules for the time of a block. Weights and hooks stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.models.calling import first_input, first_tensor, named_errors

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a layer besides the hidden states: positional ones and those by name."""

Run = Callable[[int, Tensor, Call], Tensor]
"""Replacement of a layer: from its number, the hidden states and its other arguments to its output."""


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another ``forward`` inside the block and restore theirs on exit."""
    before: dict[nn.Module, Any] = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                vars(module).pop("forward", None)
            else:
                module.forward = forward


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

    Args:
        layers: the layers of a model.
        run: the replacement.
        as_is: context manager around each call of a layer; the layer itself runs if its value is true.
    """

    def forward_of(index: int, layer: nn.Module) -> Callable[..., Any]:
        original = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with as_is(index) as unchanged:
                if unchanged:
                    return original(*args, **kwargs)
            if type(layer) not in _EXTRAS:
                _EXTRAS[type(layer)] = _extras(original, args, kwargs)
            extras = _EXTRAS[type(layer)]
            state = first_input(args, kwargs)
            others = {key: value for key, value in kwargs.items() if args or key != "hidden_states"}
            out = run(index, state, (args[1:], others))
            return out if extras is None else (out, *[None] * extras)

        return forward

    with replaced_forwards({layer: forward_of(index, layer) for index, layer in enumerate(layers)}):
        yield


_EXTRAS: dict[type[nn.Module], int | None] = {}
"""Class of a layer -> number of values that it returns after the hidden states; ``None`` if it returns a tensor.

Measured, as versions and families differ.
"""


def _extras(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Run a layer once, without its cache so that the cache does not change, and count the extra values it returns."""
    args, kwargs = without_caches((args, kwargs))
    with torch.no_grad():
        found = forward(*args, **kwargs)
    return None if isinstance(found, Tensor) else len(found) - 1


def without_caches(call: Call) -> Call:
    """Return the arguments of a layer with ``None`` for each key-value cache."""

    def kept(value: Any) -> Any:
        return None if hasattr(value, "get_seq_length") else value

    args, kwargs = call
    return tuple(map(kept, args)), {key: kept(value) for key, value in kwargs.items()}


def final_state(model: nn.Module, layers: Sequence[nn.Module], batch: Mapping[str, Any]) -> Tensor:
    """Return the output of the last layer in a forward pass of a model."""
    found: list[Tensor] = []
    with named_errors(model), layers[-1].register_forward_hook(lambda *call: found.append(first_tensor(call[2]))):
        model(**batch)
    return found[-1]


def output_for(model: nn.Module, layers: Sequence[nn.Module], batch: Mapping[str, Any], state: Tensor) -> Any:
    """Return the output of a model whose last layer gives ``state`` and whose other layers do not run."""
    last = len(layers) - 1
    with replaced_layers(layers, lambda layer, passed, _: state if layer == last else passed):
        return model(**batch)
