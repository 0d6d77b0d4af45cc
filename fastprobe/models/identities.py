"""Check the resolved points of a model on one batch, by identities between their tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.data.checks import attended_mask
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import first_input, first_tensor
from fastprobe.models.equations import equations_of
from fastprobe.models.points import Point
from fastprobe.models.recorder import ModuleRecorder
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.steps import TOLERANCE as TOLERANCE

ENDS = ("resid_pre", "resid_post")
"""Points that are the input and the output of a layer, so that they are found without its modules."""


@dataclass(frozen=True)
class Identity:
    """An identity between points of one layer, with its relative Frobenius error on a batch."""

    layer: int
    equation: str  # its text, like "resid_pre + attn_out = resid_mid"
    error: float
    tolerance: float
    points: frozenset[Point] = frozenset()  # canonical points inside the layer that the equation contains

    @property
    def holds(self) -> bool:
        """True if the error is within the tolerance."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class CheckedPoints:
    """Identities of all layers, checked on one batch, and the width of every point."""

    identities: tuple[Identity, ...]
    widths: Mapping[Point, int]
    not_finite: str = ""  # the reason why errors are NaN, where they are

    def require(self, name: str, needed: Collection[Point] | None = None) -> None:
        """Raise unless every identity holds that some points depend on.

        Args:
            name: name of the model, for the message.
            needed: canonical points that will be read; by default all. Inputs and outputs of layers depend on the
                identities between neighbouring layers only.

        Raises:
            UnsupportedModelError: an identity does not hold, and the message names the first; or states of the model
                are NaN or infinite.
        """
        if self.not_finite:
            raise UnsupportedModelError(f"{name}: {self.not_finite}")
        for identity in self.identities:
            counts = needed is None or not identity.points or not identity.points.isdisjoint(needed)
            if counts and not identity.holds:
                if not identity.points:
                    raise UnsupportedModelError(
                        f"{name}: {identity.equation} fails in layer {identity.layer} (relative error "
                        f"{identity.error:.1e}), so the model or a hook changes the states between its layers; remove "
                        "the hook, or do it inside a layer"
                    )
                raise UnsupportedModelError(
                    f"{name}: {identity.equation} fails in layer {identity.layer} (relative error "
                    f"{identity.error:.1e}, allowed {identity.tolerance:.0e}), so the points of this model cannot be "
                    "located; elements=['layer'] and spans need none of them, and `fastprobe points` lists all "
                    "identities"
                )


@torch.no_grad()
def check_points(model: nn.Module, points: ModelPoints, batch: Mapping[str, Tensor]) -> CheckedPoints:
    """Run one small batch, check every identity of every layer and measure the width of every point.

    Args:
        model: the Hugging Face model.
        points: its resolved points.
        batch: arguments of the model; a few sequences are enough.
    """
    identities: list[Identity] = []
    widths: dict[Point, int] = {}
    mask = attended_mask(batch)

    def check(layer: int, equation: str, left: Tensor, right: Tensor, inside: frozenset[Point] = frozenset()) -> None:
        if right.shape[:2] != mask.shape:
            raise UnsupportedModelError(
                f"{type(model).__name__}: its layers receive states of shape {tuple(right.shape)} for a batch of "
                f"{tuple(mask.shape)}; points need one state for each token, (batch, length, width)"
            )
        error = (left - right)[mask].double().norm() / right[mask].double().norm().clamp(min=1e-30)
        identities.append(Identity(layer, equation, float(error), TOLERANCE.get(right.dtype, 1e-5), inside))

    def on_layer(index: int, held: Mapping[Point, Tensor]) -> None:
        states = dict(held)  # the identities call modules whose hooks change ``held``

        def at(name: str) -> Tensor:
            return states[points.canonical(Point(name, index))]

        widths.update({point: tensor.shape[-1] for point, tensor in states.items()})
        for equation in equations_of(points.found[index], points.layers[index], at):
            inside = {points.canonical(Point(name, index)) for name in equation.inside}
            inside = {point for point in inside if point.name not in ENDS}
            check(index, equation.text, equation.left, equation.right, frozenset(inside))

    depth = len(points.layers)
    wanted = {point: min(point.layer + 1, depth - 1) for point in points.read_points()}
    with ModuleRecorder(model, points, wanted, on_layer) as recorder, _LayerInputs(points) as inputs:
        recorder.run(batch)
    for index, (left, right) in enumerate(inputs.neighbours):
        check(index + 1, f"resid_pre = resid_post of layer {index}", left, right)
    undefined = any(math.isnan(identity.error) for identity in identities)
    by_layer = tuple(sorted(identities, key=lambda identity: identity.layer))
    return CheckedPoints(by_layer, widths, why_not_finite(model) if undefined else "")


def why_not_finite(model: nn.Module) -> str:
    """Return the reason for NaN or infinite states: the first weight that is not finite, else the model's dtype."""
    for name, weight in model.named_parameters():
        if weight.device.type != "meta" and not weight.isfinite().all():  # an offloaded weight cannot be read
            return f"its weight {name} has numbers that are NaN or infinite; name a model whose weights are finite"
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return f"its states are NaN or infinite in {dtype}, though its weights are not; use --dtype float32"


class _LayerInputs:
    """Hooks that read the input of each layer together with the output of the layer before it."""

    def __init__(self, points: ModelPoints):
        self.points = points
        self.neighbours: list[tuple[Tensor, Tensor]] = []
        self._previous: Tensor | None = None

    def __enter__(self) -> _LayerInputs:
        self._handles = []
        for layer in self.points.layers:
            self._handles.append(layer.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(layer.register_forward_hook(self._after))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._previous is not None:
            self.neighbours.append((first_input(args, kwargs), self._previous))

    def _after(self, _: nn.Module, __: Any, result: Any) -> None:
        self._previous = first_tensor(result)
