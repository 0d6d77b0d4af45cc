"""Scale the skip connections of a live model for the time of a block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.calling import first_tensor, uncompiled
from fastprobe.models.layouts import Layout
from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.orders.arguments import in_one_line, integer

PARTS = ("attention", "ffn")


@contextmanager
def skip_scale(
    model: nn.Module,
    scale: float | Mapping[int, float],
    *,
    parts: Iterable[str] = PARTS,
) -> Iterator[nn.Module]:
    """Compute ``scale * x + f(x)`` instead of ``x + f(x)`` inside the block.

    A scale of 0 removes a skip connection, as Zhao et al. (2021) do. Hooks add ``(scale - 1) x`` to ``f(x)``, so a
    result is exact to the rounding of x.

    Args:
        model: a Hugging Face encoder or decoder.
        scale: one number for all layers, or layer -> number; other layers stay as they are.
        parts: the sub-layers whose skip connections are scaled: ``"attention"``, ``"ffn"``, or both.

    Raises:
        InputError: the model has no such layer or part, or a scale is not a finite number.
        UnsupportedModelError: attention and FFN share one skip connection, or only the skip connection of the FFN is
            to be scaled and the model has no FFN.

    Example:
        >>> with skip_scale(model, {3: 0.0}, parts=["ffn"]):  # doctest: +SKIP
        ...     effects = commutativity(model, batches, fp.orders.swaps(12))
    """
    points = resolve(model)
    depth = len(points.layers)
    if isinstance(scale, Mapping):
        scales = {integer(layer, "skip_scale"): factor for layer, factor in scale.items()}
    else:
        scales = dict.fromkeys(range(depth), scale)
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    for layer, factor in scales.items():
        if not 0 <= layer < depth:
            raise InputError(f"skip_scale: there is no layer {layer}; the model has 0 to {depth - 1}")
        if not isinstance(factor, Real) or not math.isfinite(factor):
            raise InputError(
                f"skip_scale: scale must be a finite number, got {in_one_line(factor)}; 0 removes a skip "
                "connection, 1 keeps it"
            )
    for part in parts:
        if part not in PARTS:
            raise InputError(f"skip_scale: parts: {part!r} is not one of {', '.join(PARTS)}")
    if points.parallel:
        raise UnsupportedModelError("skip_scale: attention and FFN of this model share one skip connection")
    if not points.has_ffn and "attention" not in parts:
        raise UnsupportedModelError("skip_scale: this model has no FFN and therefore no skip connection around one")
    with uncompiled(model), ExitStack() as stack:
        for index, factor in scales.items():
            for part in parts if points.has_ffn else ["attention"]:
                for handle in _scaled(points, points.layers[index], part, factor):
                    stack.callback(handle.remove)
        yield model


def _scaled(points: ModelPoints, block: nn.Module, part: str, factor: float) -> list[RemovableHandle]:
    """Register the hooks on a layer that scale one of its skip connections."""
    layout = points.layout
    if layout.attn_skip:  # a module computes the sum, so its second argument is scaled
        skip = block.get_submodule(layout.attn_skip if part == "attention" else layout.mlp_skip)
        return [skip.register_forward_pre_hook(lambda _, sides: (sides[0], factor * sides[1]))]
    state: dict[str, Tensor] = {}  # the current input of the sub-layer

    def subtract(_: nn.Module, __: Any, result: Any) -> Any:
        out = first_tensor(result) - (1 - factor) * state["x"]
        return out if isinstance(result, Tensor) else (out, *result[1:])

    place = points.places["resid_pre" if part == "attention" else "resid_mid"]
    return [
        place.read(block, lambda x: state.update(x=x)),
        block.get_submodule(_added(layout, part)).register_forward_hook(subtract),
    ]


def _added(layout: Layout, part: str) -> str:
    """Return the path of the module whose output is added to the residual stream."""
    if layout.post_ln:
        return layout.attn_proj if part == "attention" else layout.mlp_proj
    if part == "attention":
        return layout.attn_post_norm or layout.attn
    return layout.mlp_post_norm or layout.mlp
