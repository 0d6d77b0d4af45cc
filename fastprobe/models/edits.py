"""Steps of an order that are layers with something changed in them: an element replaced, or other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastprobe.models.points import ELEMENTS
from fastprobe.models.record import first_input, first_tensor
from fastprobe.models.resolve import Layout, Place
from fastprobe.models.stack import LayerStack
from fastprobe.orders import Sublayer

StandIn = Callable[[Tensor, LayerStack], Tensor]
"""What is put where an element's y was: from its x, ``(copies * batch, length, width)``, and the batch it is of."""

EDITABLE = ("layer", "attention", "ffn", "attn", "attn_heads", "attn_proj", "mlp", "mlp_act")
"""Elements that can be replaced: those whose y is a tensor of its own."""


@dataclass(frozen=True)
class Replaced:
    """A layer of which one element x -> y is another function; all around it runs as it is.

    Steps are equal if their element, layer and name are.
    """

    element: str
    layer: int
    name: str
    by: StandIn = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.element}.{self.layer}={self.name}"

    def apply(self, stack: LayerStack, state: Tensor, copies: int) -> Tensor:
        """Run the layer so; see :meth:`LayerStack.apply`."""
        if self.element == "layer" or (self.element == "attention" and not stack.points.has_ffn):
            return self.by(state, stack)
        if self.element == "attention":
            return stack.apply(Sublayer("ffn", self.layer), self.by(state, stack), copies)
        if self.element == "ffn":
            return self.by(stack.apply(Sublayer("attention", self.layer), state, copies), stack)
        return self._inside(stack, state, copies)

    def _inside(self, stack: LayerStack, state: Tensor, copies: int) -> Tensor:
        """The layer itself, with y taken from x on the way."""
        points, layer = stack.points, stack.points.layers[self.layer]
        x, y = (points.places[points.aliases.get(name, name)] for name in ELEMENTS[self.element])
        seen: list[Tensor] = []

        def look(_: nn.Module, args: Any, kwargs: Any, *result: Any) -> None:
            seen.append(first_tensor(result[0]) if result else first_input(args, kwargs))

        def put(_: nn.Module, args: Any, kwargs: Any, *result: Any) -> Any:
            out = self.by(seen[0], stack)
            if not result:
                return ((out, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": out})
            return out if isinstance(result[0], Tensor) else (out, *result[0][1:])

        with _hook(layer, x, look), _hook(layer, y, put):
            return stack.apply(self.layer, state, copies)


@dataclass(frozen=True)
class Reweighted:
    """A layer that runs with other weights. Steps are equal if their element, layer and name are."""

    element: str
    layer: int
    name: str
    weights: Mapping[str, Tensor] = field(compare=False, repr=False)  # parameters of the layer by their names in it

    def __str__(self) -> str:
        return f"{self.element}.{self.layer}={self.name}"

    def apply(self, stack: LayerStack, state: Tensor, copies: int) -> Tensor:
        """Run the layer so; see :meth:`LayerStack.apply`."""
        own = dict(stack.points.layers[self.layer].named_parameters())
        before = {name: own[name].data for name in self.weights}
        try:
            for name, value in self.weights.items():
                own[name].data = value
            return stack.apply(self.layer, state, copies)
        finally:
            for name, value in before.items():
                own[name].data = value


def initial_weights(
    layer: nn.Module, layout: Layout, element: str, seed: Sequence[int], std: float = 0.02
) -> dict[str, Tensor]:
    """Weights of an element as they were before training: truncated normal at two ``std``, biases zero.

    Norms are left as they are.

    Args:
        layer: the layer that the element is a part of.
        layout: names of the modules in it.
        element: one of :data:`EDITABLE`.
        seed: numbers, none below 0; all of each counts, where a torch generator takes 32 bits in all.
        std: before truncation, which leaves 0.88 of it.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    weights: dict[str, Tensor] = {}
    for path in linear_modules(layer, layout, element):
        for name, parameter in layer.get_submodule(path).named_parameters(recurse=False):
            value = torch.zeros(parameter.shape)
            if parameter.ndim > 1:
                nn.init.trunc_normal_(value, std=std, a=-2 * std, b=2 * std, generator=generator)
            weights[f"{path}.{name}"] = value.to(parameter)
    return weights


def linear_modules(layer: nn.Module, layout: Layout, element: str) -> list[str]:
    """Paths in a layer of the modules of an element that multiply by a matrix."""
    attention = layout.attn_proj.split(".")[0] + "."
    paths = [
        path
        for path, module in layer.named_modules()
        if any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
    ]
    if element in ("attn", "attention", "attn_heads"):
        paths = [path for path in paths if path.startswith(attention)]
    elif element in ("mlp", "ffn", "mlp_act"):
        paths = [path for path in paths if not path.startswith(attention)]
    elif element == "attn_proj":
        paths = [path for path in paths if _within(path, layout.attn_proj)]
    without = {"attn_heads": layout.attn_proj, "mlp_act": layout.mlp_proj}.get(element)
    return [path for path in paths if without is None or not _within(path, without)]


def _within(path: str, module: str) -> bool:
    """Whether a path is that of a module or of one in it, as W_O is with a GELU behind it."""
    return path == module or path.startswith(f"{module}.")


@contextmanager
def _hook(layer: nn.Module, place: Place, hook: Callable[..., Any]) -> Iterator[None]:
    module = layer.get_submodule(place.module)
    register = module.register_forward_hook if place.output else module.register_forward_pre_hook
    handle = register(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
