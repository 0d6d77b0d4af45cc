"""Check that new weights of an element are those that its modules multiply by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.models.edits import Reweighted, other_weights
from fastprobe.models.element_weights import element_modules
from fastprobe.models.plain_matrices import REMEDY, Function, is_matrix, is_product
from fastprobe.models.stack import LayerStack

ROWS = 8
"""Rows of the input of a module in the tests of its matrix."""


def unreached_weight(stack: LayerStack, edit: Reweighted, state: Tensor) -> str:
    """Return the reason if a layer with new weights does not compute with them, else ``""``.

    Every module of the element is called during a run of the edited layer. A module that multiplies by a matrix must
    give the product with the one matrix that it got. A matrix that is used in another way (a convolution, experts in
    one tensor, an embedding) must change the output of the layer.

    Args:
        stack: the model on a few sequences.
        edit: the new weights.
        state: ``(batch, length, width)``, the input of the layer.
    """
    layer, layout = stack.points.layers[edit.layer], stack.points.layouts[edit.layer]
    modules = {path: layer.get_submodule(path) for path in element_modules(layer, layout, edit.element)}
    drawn = {name: value for name, value in edit.weights.items() if value.ndim > 1}
    for path, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            return f"{path} is compiled by TorchScript, so its weights cannot be replaced; {REMEDY}"
    for name, value in edit.weights.items():
        if not value.is_floating_point():
            return f"{name} is stored as {value.dtype}; {REMEDY}"
    found: set[str] = set()
    with other_weights(layer, edit.weights):
        ran, calls = _observe(modules, lambda: stack.apply(edit.layer, state.clone()), state.shape[:2])
        for path, (run, x) in calls.items():
            if (layout.mlp and path == layout.mlp.out != layout.mlp.proj) or not is_matrix(run, x):
                continue
            inside = {name: value for name, value in drawn.items() if name.startswith(f"{path}.")}
            if any(value.ndim > 2 for value in inside.values()):
                continue
            if len(inside) == 1 and is_product(run, x, *inside.values()):
                found.update(inside)
                continue
            return f"{path}, a {type(modules[path]).__name__}, {_seen(inside)}; {REMEDY}"
        if not ran:
            return f"none of its modules runs by itself; {REMEDY}"
    for name in drawn.keys() - found:
        owner = name.rpartition(".")[0]
        parent = owner.rpartition(".")[0]
        if owner not in ran and parent and parent not in ran:  # another expert, or cross-attention: it is not used
            continue
        if not _has_effect(stack, edit, name, state):
            return f"{name} has no effect on the layer, which may run a copy of it; {REMEDY}"
    return ""


def _seen(inside: Mapping[str, Tensor]) -> str:
    """Return what is wrong with a module that multiplies by another matrix than the one drawn."""
    if not inside:
        return "multiplies by a matrix that is not one of its parameters"
    if len(inside) > 1:
        return f"computes one matrix from {', '.join(inside)}"
    return f"does not multiply by its parameter {next(iter(inside))} alone"


def _observe(
    modules: Mapping[str, nn.Module], run: Callable[[], object], tokens: torch.Size
) -> tuple[set[str], dict[str, tuple[Function, Tensor]]]:
    """Return the modules that a run calls, and those that map states to states, each with some rows of its input.

    Args:
        modules: paths and modules of the element.
        run: runs the layer.
        tokens: (batch, length) of its states.
    """
    ran: set[str] = set()
    calls: dict[str, tuple[Function, Tensor]] = {}

    def keep(path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        ran.add(path)
        values = [*args, *kwargs.values()]
        if len(values) == 1 and _has_rows(values[0], tokens) and _has_rows(result, tokens):
            few = values[0][:1, :ROWS] if values[0].ndim > 2 else values[0][:ROWS]
            calls[path] = _function(modules[path], next(iter(kwargs), None)), few

    with ExitStack() as hooks:
        for path, module in modules.items():
            hooks.enter_context(module.register_forward_hook(partial(keep, path), with_kwargs=True))
        run()
    return ran, calls


def _has_rows(value: Any, tokens: torch.Size) -> bool:
    """Return whether a value is a tensor of states: ``(batch, length, width)`` or ``(batch * length, width)``."""
    return isinstance(value, Tensor) and value.shape[:-1] in (tokens, (tokens.numel(),)) and value.is_floating_point()


def _function(module: nn.Module, key: str | None) -> Function:
    """Return a module as a function of the one argument that it was called with, by place or by name."""
    return module if key is None else lambda x: module(**{key: x})


def _has_effect(stack: LayerStack, edit: Reweighted, name: str, state: Tensor) -> bool:
    """Return whether one new weight alone changes the output of the layer."""
    layer = stack.points.layers[edit.layer]
    before = stack.apply(edit.layer, state.clone())
    with other_weights(layer, {name: edit.weights[name]}):
        return not torch.equal(stack.apply(edit.layer, state.clone()), before)
