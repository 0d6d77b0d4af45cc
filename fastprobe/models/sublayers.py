"""Run the attention or the FFN of a layer alone, each with its skip connection and norm.

Both run the layer's own ``forward``. The attention is a run that stops before the FFN. The FFN is a run in which the
attention adds nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import StopForward, with_first_tensor
from fastprobe.models.forwards import replaced_forwards
from fastprobe.models.layouts import Layout, Part
from fastprobe.models.places import Place
from fastprobe.models.resolve import ModelPoints
from fastprobe.orders import Sublayer

RunLayer = Callable[[], Tensor]
"""Run of the whole layer on a given state with its other arguments."""


def run_sublayer(points: ModelPoints, step: Sublayer, state: Tensor, run_layer: RunLayer) -> Tensor:
    """Return the state after the attention or the FFN of a layer.

    Args:
        points: the resolved points of the model.
        step: part and layer.
        state: ``(batch, length, width)``, the input of the sub-layer.
        run_layer: the whole layer on ``state``.

    Raises:
        UnsupportedModelError: the layer has no such part, or attention and FFN read the same state.
    """
    layout = points.layouts[step.layer]
    if layout.parallel:
        raise UnsupportedModelError(
            f"order {step}: attention and FFN of this model read one state and cannot be run apart"
        )
    if not layout.has_ffn or layout.attn is None:
        if not layout.has_ffn and layout.attn is None:
            raise UnsupportedModelError(
                f"order {step}: attention and FFN of this layer were not found ({layout.reason})"
            )
        if step.part == ("ffn" if layout.attn else "attention"):
            lacking = "FFN" if layout.attn else "attention"
            raise UnsupportedModelError(f"order {step}: the layers of this model have no {lacking}")
        return run_layer()
    if layout.others or layout.attn.skip != 1 or layout.attn.skips_norm:
        raise UnsupportedModelError(
            f"order {step}: the halves of this layer cannot be run apart, because it has {layout.form}"
        )
    layer = points.layers[step.layer]
    if step.part == "attention":
        return _attention(points.found[step.layer].place("resid_mid"), layer, run_layer)
    return _ffn(layout, layout.attn, layer, state, run_layer)


def _attention(between: Place, layer: nn.Module, run_layer: RunLayer) -> Tensor:
    """Run a layer up to the state between attention and FFN, and return that state."""
    found: list[Tensor] = []

    def stop(state: Tensor) -> None:
        found.append(state)
        raise StopForward

    with between.read(layer, stop):
        try:
            run_layer()
        except StopForward:
            return found[0]
    raise AssertionError("a layer ended without its attention")


def _ffn(layout: Layout, attn: Part, layer: nn.Module, state: Tensor, run_layer: RunLayer) -> Tensor:
    """Run a layer whose attention adds nothing to the state, and return its output."""
    norm = layer.get_submodule(attn.sum_norm) if attn.sum_norm else None
    norm_inside = attn.sum_norm.startswith(f"{layout.attention}.")
    attention = layer.get_submodule(layout.attention if norm_inside else attn.out)
    alone = _returns_tensor(attention, run_layer)

    def attend(*_: Any, **__: Any) -> Any:
        out = norm(state) if norm is not None and norm_inside else torch.zeros_like(state)  # the norm has hooks
        return out if alone else (out, None)

    forwards: dict[nn.Module, Any] = {attention: attend}
    if norm is not None:  # the norm after the attention returns the input of the layer
        forwards[norm] = lambda *_, **__: state

    def nothing(_: nn.Module, __: Any, out: Any) -> Any:
        return with_first_tensor(out, torch.zeros_like(state))

    with replaced_forwards(forwards), ExitStack() as hooks:
        if norm is None:  # after the hooks of a scaled skip connection, which add to the output of the attention
            added = layer.get_submodule(attn.added)
            hooks.enter_context(added.register_forward_hook(nothing))
        return run_layer()


_RETURNS_TENSOR: dict[type[nn.Module], bool] = {}
"""Class of an attention -> whether it returns its output alone, or first in a tuple."""


def _returns_tensor(attention: nn.Module, run_layer: RunLayer) -> bool:
    """Return whether an attention returns its output alone; measured once for each class."""

    def look(_: nn.Module, __: Any, result: Any) -> None:
        _RETURNS_TENSOR[type(attention)] = isinstance(result, Tensor)
        raise StopForward

    if type(attention) not in _RETURNS_TENSOR:
        with attention.register_forward_hook(look), suppress(StopForward):
            run_layer()
    return _RETURNS_TENSOR[type(attention)]
