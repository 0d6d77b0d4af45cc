"""Edited layers as steps of an order: one element replaced by a function, or other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fastprobe.models.calling import with_first_tensor
from fastprobe.models.points import ELEMENTS
from fastprobe.models.stack import LayerStack
from fastprobe.orders import Sublayer

Replacement = Callable[[Tensor, LayerStack], Tensor]
"""Function from the x of an element, ``(copies * batch, length, width)``, and the stack of its batch to another y."""

EDITABLE = ("layer", "attention", "ffn", "attn", "attn_heads", "attn_proj", "mlp", "mlp_act")
"""Elements that can be replaced: their y is the tensor of one place, not a sum."""


@dataclass(frozen=True)
class Replaced:
    """A layer with one element x -> y replaced by a function. The rest of the layer runs as it is.

    Two such steps are equal if their element, layer and name are.
    """

    element: str
    layer: int
    name: str
    by: Replacement = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.element}.{self.layer}={self.name}"

    def apply(self, stack: LayerStack, state: Tensor, copies: int) -> Tensor:
        """Run the edited layer; see ``Stack.apply``."""
        if self.element == "layer" or (self.element == "attention" and not stack.points.layouts[self.layer].has_ffn):
            return self.by(state, stack)
        if self.element == "attention":
            return stack.apply(Sublayer("ffn", self.layer), self.by(state, stack), copies)
        if self.element == "ffn":
            return self.by(stack.apply(Sublayer("attention", self.layer), state, copies), stack)
        return self._inside(stack, state, copies)

    def _inside(self, stack: LayerStack, state: Tensor, copies: int) -> Tensor:
        """Run the layer itself with two hooks: one reads x, one replaces y by the function of x."""
        points, layer = stack.points, stack.points.layers[self.layer]
        x, y = map(points.found[self.layer].place, ELEMENTS[self.element])
        read: list[Tensor] = []

        def replace(_: nn.Module, args: Any, kwargs: Any, *result: Any) -> Any:
            out = self.by(read[0], stack).clone() if y.copy else self.by(read[0], stack)
            if not result:
                return ((out, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": out})
            return with_first_tensor(result[0], out)

        with x.read(layer, read.append), y.hook(layer, replace):
            return stack.apply(self.layer, state, copies)


@dataclass(frozen=True)
class Reweighted:
    """A layer that runs with other weights. Two such steps are equal if their element, layer and name are."""

    element: str
    layer: int
    name: str
    weights: Mapping[str, Tensor] = field(compare=False, repr=False)  # name of a parameter in the layer -> its value

    def __str__(self) -> str:
        return f"{self.element}.{self.layer}={self.name}"

    def apply(self, stack: LayerStack, state: Tensor, copies: int) -> Tensor:
        """Run the edited layer; see ``Stack.apply``."""
        with other_weights(stack.points.layers[self.layer], self.weights):
            return stack.apply(self.layer, state, copies)


@contextmanager
def other_weights(layer: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a layer other parameters inside the block.

    Only the named modules get them: a parameter that other modules share stays theirs. The new parameters record no
    gradient, so autocast does not take a copy of the old ones from its cache.

    Args:
        layer: the layer.
        weights: path of a parameter in the layer -> its value.
    """
    slots = []
    for path, value in weights.items():
        owner, _, name = path.rpartition(".")
        slots.append((layer.get_submodule(owner)._parameters, name, value))
    before = [parameters[name] for parameters, name, _ in slots]
    try:
        for parameters, name, value in slots:
            parameters[name] = nn.Parameter(value, requires_grad=False)
        yield
    finally:
        for (parameters, name, _), parameter in zip(slots, before, strict=True):
            parameters[name] = parameter
