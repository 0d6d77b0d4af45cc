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
from fastprobe.models.calling import StopForward
from fastprobe.models.forwards import replaced_forwards
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
    if points.parallel:
        raise UnsupportedModelError(
            f"order {step}: attention and FFN of this model read one state and cannot be run apart"
        )
    if not points.has_ffn:
        if step.part == "ffn":
            raise UnsupportedModelError(f"order {step}: the layers of this model have no FFN")
        return run_layer()
    layer = points.layers[step.layer]
    return _attention(points, layer, run_layer) if step.part == "attention" else _ffn(points, layer, state, run_layer)


def _attention(points: ModelPoints, layer: nn.Module, run_layer: RunLayer) -> Tensor:
    """Run a layer up to ``resid_mid``, the state between attention and FFN, and return that state."""
    found: list[Tensor] = []

    def stop(state: Tensor) -> None:
        found.append(state)
        raise StopForward

    with points.places["resid_mid"].read(layer, stop):
        try:
            run_layer()
        except StopForward:
            return found[0]
    raise AssertionError("a layer ended without its attention")


def _ffn(points: ModelPoints, layer: nn.Module, state: Tensor, run_layer: RunLayer) -> Tensor:
    """Run a layer whose attention adds nothing to the state, and return its output."""
    layout = points.layout
    name = layout.attn_proj.partition(".")[0]
    attention, norm = layer.get_submodule(name), layer.get_submodule(layout.attn_norm)
    alone, norm_inside = _returns_tensor(attention, run_layer), layout.attn_norm.startswith(f"{name}.")

    def attend(*_: Any, **__: Any) -> Any:
        out = norm(state) if norm_inside and layout.post_ln else torch.zeros_like(state)  # the norm has hooks
        return out if alone else (out, None)

    forwards: dict[nn.Module, Any] = {attention: attend}
    if layout.post_ln:  # the norm after the attention returns the input of the layer
        forwards[norm] = lambda *_, **__: state

    def nothing(_: nn.Module, __: Any, out: Any) -> Any:
        return torch.zeros_like(state) if isinstance(out, Tensor) else (torch.zeros_like(state), *out[1:])

    with replaced_forwards(forwards), ExitStack() as hooks:
        if not layout.post_ln:  # after the hooks of a scaled skip connection, which add to the output of the attention
            added = layer.get_submodule(layout.attn_post_norm or layout.attn)
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
