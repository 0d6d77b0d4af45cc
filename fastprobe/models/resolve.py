"""Resolve the points of a model: find its stack of layers by running it, then the points inside each layer."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastprobe.data.checks import INPUTS
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.calling import body_of, evaluating
from fastprobe.models.examples import SHAPE, input_of
from fastprobe.models.inspection import layouts_of
from fastprobe.models.layer_points import LayerPoints
from fastprobe.models.layouts import Layout
from fastprobe.models.points import ELEMENTS, Element, Point, range_text
from fastprobe.models.reordered import check_not_reordered
from fastprobe.models.self_changes import put_back
from fastprobe.models.stacks import FoundStack, alone, observations


@dataclass(frozen=True)
class ModelPoints:
    """The layers of a model and the places of its points."""

    layers: tuple[nn.Module, ...]
    found: tuple[LayerPoints, ...]
    """Points of each layer."""
    stack: str = ""
    """Path of the module that holds the layers."""
    root: str = ""
    """Path of the part of the model that runs by itself on a batch; "" for the whole model."""
    others: tuple[str, ...] = ()
    """Paths of the other stacks of the model."""
    loops: bool = False
    """The layers run several times in one pass. Only a live model can run them in another order."""
    carries: str = ""
    """Other tensors that a layer hands to the next one: "" for none, "one" for the same all along, else "another"."""

    def part_of(self, model: nn.Module) -> nn.Module:
        """Return the part of a model that runs by itself on a batch."""
        return model.get_submodule(self.root) if self.root else model

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """Layout of each layer."""
        return tuple(found.layout for found in self.found)

    @property
    def parallel(self) -> bool:
        """True if attention and FFN of some layer read one state, so that there is no state between them."""
        return any(layout.parallel for layout in self.layouts)

    @property
    def has_ffn(self) -> bool:
        """True if a layer has an FFN."""
        return any(layout.has_ffn for layout in self.layouts)

    @property
    def elements(self) -> list[str]:
        """Names of the elements that at least one layer has."""
        known = {name for found in self.found for name in found.elements}
        return [name for name in ELEMENTS if name in known]

    def has(self, element: Element) -> bool:
        """Return whether the model has an element."""
        return element.is_span or element.name in self.found[element.start].elements

    def missing(self, names: Iterable[str], layers: Iterable[int]) -> dict[str, list[int]]:
        """Return the layers that lack an element, for each name of which there are some."""
        layers = list(layers)
        lacking = {name: [i for i in layers if name not in self.found[i].elements] for name in names}
        return {name: numbers for name, numbers in lacking.items() if numbers}

    def description(self, names: Iterable[str] = (), layers: Iterable[int] = ()) -> dict[str, Any]:
        """Return entries of a configuration: the stack of a model with several, and layers that lack an element."""
        found: dict[str, Any] = {"stack": self.stack} if self.others else {}
        lacking = {name: range_text(numbers) for name, numbers in self.missing(names, layers).items()}
        return found | ({"missing": lacking} if lacking else {})

    def canonical(self, point: Point) -> Point:
        """Return the canonical point of a tensor that has several names.

        The input of a layer, for example, is the output of the layer before it.
        """
        name = self.found[point.layer].aliases.get(point.name, point.name)
        if name == "resid_pre" and point.layer > 0:
            return Point("resid_post", point.layer - 1)
        return Point(name, point.layer)

    def parts(self, point: Point) -> tuple[Point, Point] | None:
        """Return the two canonical points whose sum a canonical point is, or ``None`` if the point is read itself."""
        sums = self.found[point.layer].sums
        if point.name not in sums:
            return None
        first, second = sums[point.name]
        return self.canonical(Point(first, point.layer)), self.canonical(Point(second, point.layer))

    def read_points(self) -> list[Point]:
        """Return the canonical points of all layers that are read by themselves."""
        named = (Point(name, layer) for layer, found in enumerate(self.found) for name in found.places)
        return list(dict.fromkeys(map(self.canonical, named)))

    def read_by(self, elements: Iterable[Element]) -> set[Point]:
        """Return the canonical points that are read for some elements. The two parts of a sum are read."""
        return {*self.needed_until((self.canonical(end), 0) for element in elements for end in (element.x, element.y))}

    def needed_until(self, uses: Iterable[tuple[Point, int]]) -> dict[Point, int]:
        """Return the points that a recorder must read for some uses, each with the last layer that needs it.

        Args:
            uses: pairs of a canonical point and the layer at whose end it is used. The two parts of a sum are read.
        """
        until: dict[Point, int] = {}
        for point, layer in uses:
            for part in self.parts(point) or (point,):
                until[part] = max(until.get(part, -1), layer, part.layer)
        return until


def resolve(model: nn.Module, stack: str | None = None) -> ModelPoints:
    """Find the layers of a Hugging Face model and the points inside them, by running it on two short sequences.

    The result is kept with the model until one of its modules is replaced.

    Args:
        model: a Hugging Face model.
        stack: path or a part of the path of the stack, such as ``"encoder"``; by default the longest.

    Raises:
        InputError: ``model`` is not a Hugging Face model, has no such stack, or runs its layers in another order now.
        UnsupportedModelError: no stack of layers was found.
    """
    _check_is_model(model)
    model = getattr(model, "_orig_mod", model)
    modules = [module for module in model.modules() if module is not model]
    kept = _KEPT.get(model)
    if kept is None or len(kept[0]) != len(modules) or any(a is not b for a, b in zip(kept[0], modules, strict=True)):
        kept = _KEPT[model] = (modules, {})
    if stack not in kept[1]:
        kept[1][stack] = _resolved(model, stack)
    return kept[1][stack]


_KEPT: weakref.WeakKeyDictionary[nn.Module, tuple[list[nn.Module], dict[str | None, ModelPoints]]] = (
    weakref.WeakKeyDictionary()
)
"""Model -> the modules inside it, and its resolved points by the name of their stack."""


def _resolved(model: nn.Module, name: str | None) -> ModelPoints:
    check_not_reordered(model.modules())
    with evaluating(model), put_back(model):
        runs, reasons = observations(body_of(model), name)
        stacks = [(root, call, one) for root, call, found in runs for one in found]
        if not stacks:
            raise UnsupportedModelError(
                f"{name_of(model)}: no stack of layers was found, that is, modules that run once each on what the one "
                f"before returned{': ' + '; '.join(reasons[:2]) if reasons else ''}"
            )
        root, call, chosen = _chosen(stacks, name)
        if not root and len(stacks) > 1 and chosen is not stacks[-1][2] and (part := alone(body_of(model), chosen)):
            root, call = part  # what follows the stack is no head of it
        _check_shape(model, chosen, input_of(body_of(model).get_submodule(root)))
        layouts = layouts_of(chosen.layers, call)
    prefix = next((path for path, module in model.named_modules() if module is body_of(model)), "")
    paths = [".".join(filter(None, (prefix, ran, one.path))) for ran, _, one in stacks]
    at = next(i for i, (_, _, one) in enumerate(stacks) if one is chosen)
    return ModelPoints(
        chosen.layers,
        tuple(map(LayerPoints.of, layouts)),
        stack=paths[at],
        root=".".join(filter(None, (prefix, root))) if root else "",
        others=(*paths[:at], *paths[at + 1 :]),
        carries=chosen.carries,
        loops=chosen.loops,
    )


def _check_shape(model: nn.Module, stack: FoundStack, key: str) -> None:
    """Raise if the states of a stack are not ``(batch, length, width)``; for token ids with one state for each id."""
    if key == INPUTS[0] and stack.shape[:-1] != SHAPE:
        raise UnsupportedModelError(
            f"{name_of(model)}: the layers of {stack.path} receive states of shape {stack.shape} for ids of shape "
            f"{SHAPE}; points and orders need one state for each token, (batch, length, width)"
        )
    if len(stack.shape) != 3 or stack.shape[0] != SHAPE[0]:
        raise UnsupportedModelError(
            f"{name_of(model)}: the layers of {stack.path} receive states of shape {stack.shape} for {SHAPE[0]} inputs "
            f"{key}; points and orders need states (batch, length, width)"
        )


def _chosen(stacks: Sequence[tuple[str, Any, FoundStack]], name: str | None) -> tuple[str, Any, FoundStack]:
    """Return the stack of a name, by default the longest, the first among equals."""
    if name is None:
        return max(stacks, key=lambda one: len(one[2].layers))
    full = [".".join(filter(None, (root, stack.path))) for root, _, stack in stacks]
    fitting = [one for one, path in zip(stacks, full, strict=True) if path == name]
    fitting = fitting or [one for one, path in zip(stacks, full, strict=True) if name in path]
    if len(fitting) != 1:
        raise InputError(
            f"stack: {name!r} is {'no stack' if not fitting else 'the name of several stacks'} of this model; it has "
            f"{', '.join(full)}"
        )
    return fitting[0]


def _check_is_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model: must be a Hugging Face model, got {model!r}; load one with transformers' AutoModel.from_pretrained"
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise InputError(f"model: must be a Hugging Face model, got a {type(model).__name__}; pass model.module")
    if getattr(model, "config", None) is None:
        raise InputError(
            f"model: must be a Hugging Face model, got a {type(model).__name__} without config; load one with "
            "transformers' AutoModel.from_pretrained"
        )


def name_of(model: nn.Module) -> str:
    """Return the name that a model was loaded by, else its class."""
    return getattr(model.config, "name_or_path", "") or type(model).__name__
