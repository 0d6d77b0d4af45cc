"""The identities that hold where points were found in the right places, checked on one batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.errors import UnsupportedModelError
from fastprobe.models.points import Point
from fastprobe.models.record import Recorder, first_input, first_tensor
from fastprobe.models.resolve import ModelPoints

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
"""Largest relative Frobenius error of an identity, by the dtype the model computes in."""


@dataclass(frozen=True)
class Identity:
    """An equation between points of one layer, and how nearly it held."""

    layer: int
    equation: str
    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True)
class CheckedPoints:
    """What one small batch showed of a model: the identities and the width of every point of every layer."""

    identities: tuple[Identity, ...]
    widths: Mapping[Point, int]
    not_finite: str = ""  # why an error is no number, where one is

    def require(self, name: str) -> None:
        """Raise unless every identity holds.

        Raises:
            UnsupportedModelError: one does not, and the message names the first; or nothing can be seen of one.
        """
        if self.not_finite:
            raise UnsupportedModelError(f"{name}: {self.not_finite}")
        for identity in self.identities:
            if not identity.holds:
                raise UnsupportedModelError(
                    f"{name}: {identity.equation} fails in layer {identity.layer} (relative error "
                    f"{identity.error:.1e}, allowed {identity.tolerance:.0e}): its points are not where they seem; "
                    "`fastprobe points` lists all identities"
                )


@torch.no_grad()
def check_points(model: nn.Module, points: ModelPoints, batch: Mapping[str, Tensor]) -> CheckedPoints:
    """Run one small batch, check every identity of every layer and note the width of every point.

    Args:
        model: the Hugging Face model.
        points: where its points are thought to be.
        batch: what the model takes; a few sequences are enough.
    """
    identities: list[Identity] = []
    widths: dict[Point, int] = {}
    mask = batch["attention_mask"].bool()

    def check(layer: int, equation: str, left: Tensor, right: Tensor) -> None:
        error = (left - right)[mask].double().norm() / right[mask].double().norm().clamp(min=1e-30)
        identities.append(Identity(layer, equation, float(error), TOLERANCE.get(right.dtype, 1e-5)))

    def on_layer(index: int, now: Mapping[Point, Tensor]) -> None:
        held = dict(now)  # calling a module below runs its hooks again

        def at(name: str) -> Tensor:
            return held[points.canonical(Point(name, index))]

        layer = points.layers[index]
        widths.update({point: tensor.shape[-1] for point, tensor in held.items()})
        for equation, left, right in _equations(points, layer, at):
            check(index, equation, left, right)

    depth = len(points.layers)
    canonical = {points.canonical(Point(name, layer)) for name in points.places for layer in range(depth)}
    wanted = {point: min(point.layer + 1, depth - 1) for point in canonical}
    with Recorder(model, points, wanted, on_layer) as recorder, _InputsOfLayers(points) as inputs:
        recorder.run(batch)
    for index, (left, right) in enumerate(inputs.neighbours):
        check(index + 1, f"resid_pre = resid_post of layer {index}", left, right)
    unseen = any(math.isnan(identity.error) for identity in identities)
    found = tuple(sorted(identities, key=lambda i: i.layer))
    return CheckedPoints(found, widths, why_not_finite(model) if unseen else "")


def why_not_finite(model: nn.Module) -> str:
    """Why a model whose states are NaN or infinite has such: the first of its weights that is, or its dtype."""
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            return f"its weight {name} has numbers that are NaN or infinite; name a model whose weights are sound"
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return f"its states are NaN or infinite in {dtype}, though its weights are not; --dtype float32 may hold them"


def _equations(points: ModelPoints, layer: nn.Module, at: Any) -> list[tuple[str, Tensor, Tensor]]:
    layout = points.layout

    def module(path: str, *args: Tensor) -> Tensor:
        return first_tensor(layer.get_submodule(path)(*args)) if path else args[0]

    found = [("attn_proj(attn_heads) = attn_out", module(layout.attn_proj, at("attn_heads")), at("attn_out"))]
    if layout.attn_skip:
        return found + _equations_of_skips(points, layer, at)
    found.append(("mlp_proj(mlp_act) = mlp_out", module(layout.mlp_proj, at("mlp_act")), at("mlp_out")))
    attn, mlp = module(layout.attn_post_norm, at("attn_out")), module(layout.mlp_post_norm, at("mlp_out"))
    if layout.post_ln:
        found += [
            (
                "norm(attn_out + resid_pre) = resid_mid",
                module(layout.attn_norm, attn + at("resid_pre")),
                at("resid_mid"),
            ),
            (
                "norm(mlp_out + resid_mid) = resid_post",
                module(layout.mlp_norm, mlp + at("resid_mid")),
                at("resid_post"),
            ),
        ]
        return found
    found.append(("norm(resid_pre) = attn_in", module(layout.attn_norm, at("resid_pre")), at("attn_in")))
    if points.parallel:
        found.append(
            ("resid_pre + attn_out + mlp_out = resid_post", at("resid_pre") + attn + mlp, at("resid_post")),
        )
        return found
    a, m = (
        ("norm(attn_out)" if layout.attn_post_norm else "attn_out"),
        ("norm(mlp_out)" if layout.mlp_post_norm else "mlp_out"),
    )
    found += [
        (f"resid_pre + {a} = resid_mid", at("resid_pre") + attn, at("resid_mid")),
        ("norm(resid_mid) = mlp_in", module(layout.mlp_norm, at("resid_mid")), at("mlp_in")),
        (f"resid_mid + {m} = resid_post", at("resid_mid") + mlp, at("resid_post")),
    ]
    return found


def _equations_of_skips(points: ModelPoints, layer: nn.Module, at: Any) -> list[tuple[str, Tensor, Tensor]]:
    """Those of a post-LN layer whose skip connections are modules, with an FFN or without."""
    layout, module = points.layout, layer.get_submodule
    found = [
        (
            "skip(attn_out, resid_pre) = attn_sum",
            module(layout.attn_skip)(at("attn_out"), at("resid_pre")),
            at("attn_sum"),
        ),
        ("norm(attn_sum) = resid_mid", module(layout.attn_norm)(at("attn_sum")), at("resid_mid")),
    ]
    if points.has_ffn:
        found += [
            ("mlp_proj(mlp_act) = mlp_out", module(layout.mlp_proj)(at("mlp_act")), at("mlp_out")),
            (
                "skip(mlp_out, resid_mid) = mlp_sum",
                module(layout.mlp_skip)(at("mlp_out"), at("resid_mid")),
                at("mlp_sum"),
            ),
            ("norm(mlp_sum) = resid_post", module(layout.mlp_norm)(at("mlp_sum")), at("resid_post")),
        ]
    return found


class _InputsOfLayers:
    """Each layer's input beside the output of the layer before it, as the model itself passed them on."""

    def __init__(self, points: ModelPoints):
        self.points = points
        self.neighbours: list[tuple[Tensor, Tensor]] = []
        self._previous: Tensor | None = None

    def __enter__(self) -> _InputsOfLayers:
        self._handles = []
        for layer in self.points.layers:
            self._handles.append(layer.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(layer.register_forward_hook(self._after, prepend=True))
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._previous is not None:
            self.neighbours.append((first_input(args, kwargs), self._previous))

    def _after(self, _: nn.Module, __: Any, result: Any) -> None:
        self._previous = first_tensor(result)
