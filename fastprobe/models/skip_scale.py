"""Scale the skip connections of a live model for the time of a block."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.calling import first_tensor, uncompiled
from fastprobe.models.identities import TOLERANCE
from fastprobe.models.layouts import Layout
from fastprobe.models.places import Place
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
    result is exact to the rounding of x. The first forward pass checks in each scaled layer that it has the sum.

    Args:
        model: a Hugging Face encoder or decoder.
        scale: one number for all layers, or layer -> number; other layers stay as they are.
        parts: the sub-layers whose skip connections are scaled: ``"attention"``, ``"ffn"``, or both.

    Raises:
        InputError: the model has no such layer or part, or a scale is not a finite number.
        UnsupportedModelError: attention and FFN share one skip connection; or only the skip connection of the FFN is
            to be scaled and the model has no FFN; or layers share the modules to scale. A forward pass raises it if a
            layer does not compute ``scale * x + f(x)``.

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
                if factor == 1:
                    continue
                _check_unshared(points, index, part)
                for handle in _scaled(points, index, part, factor):
                    stack.callback(handle.remove)
        yield model


def _check_unshared(points: ModelPoints, layer: int, part: str) -> None:
    """Raise an error if another layer runs the module whose hooks scale a skip connection of a layer."""
    block = points.layers[layer]
    module = block.get_submodule(_added(points.layout, part))
    sharing = [i for i, other in enumerate(points.layers) if i != layer and any(m is module for m in other.modules())]
    if sharing:
        raise UnsupportedModelError(
            f"skip_scale: layers {layer} and {', '.join(map(str, sharing))} share one {type(module).__name__}, so the "
            "skip connection of one cannot be scaled alone; give each layer its own modules (copy.deepcopy)"
        )


def _scaled(points: ModelPoints, index: int, part: str, factor: float) -> list[RemovableHandle]:
    """Register the hooks on a layer that scale one of its skip connections, and that check the first sum."""
    layout, block = points.layout, points.layers[index]
    added = block.get_submodule(_added(layout, part))
    current: dict[str, Tensor] = {}  # x and f(x) of the current run
    checked: list[bool] = []

    def subtract(_: nn.Module, __: Any, result: Any) -> Any:
        current["f"] = first_tensor(result)
        out = current["f"] - (1 - factor) * current["x"]
        return out if isinstance(result, Tensor) else (out, *result[1:])

    def scale(_: nn.Module, sides: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        current["f"] = sides[0]
        return sides[0], factor * sides[1]

    def check(total: Tensor) -> None:
        if checked or "x" not in current or torch.equal(total, current["x"]):  # the layer or its attention is left out
            return
        if "f" not in current:
            raise UnsupportedModelError(
                f"skip_scale: layer {index} does not call {_added(layout, part)}, so the skip connection of its {part} "
                "cannot be scaled; use another part or layer"
            )
        checked.append(True)
        expected = current["f"].detach().double() + factor * current["x"].detach().double()
        error = float((total.detach() - expected).norm() / expected.norm())
        if not layout.attn_skip and error > TOLERANCE.get(total.dtype, 1e-5):
            raise UnsupportedModelError(
                f"skip_scale: the skip connection of the {part} of layer {index} is no plain sum: the layer differs "
                f"from {factor} x + f(x) by {error:.1e} of its norm; use evaluation mode, or another part or layer"
            )

    read = points.places["resid_pre" if part == "attention" else "resid_mid"]
    handles = [
        block.register_forward_pre_hook(lambda *_: current.clear()),
        read.read(block, lambda x: current.update(x=x)),
        _sum(points, part).read(block, check),
    ]
    if layout.attn_skip:  # a module computes the sum, so its second argument is scaled
        return [*handles, added.register_forward_pre_hook(scale)]
    return [*handles, added.register_forward_hook(subtract)]


def _sum(points: ModelPoints, part: str) -> Place:
    """Return the place of the first sum after the skip connection of a part."""
    if points.layout.post_ln:
        return Place(points.layout.attn_norm if part == "attention" else points.layout.mlp_norm, False)
    return points.places["resid_mid" if part == "attention" else "resid_post"]


def _added(layout: Layout, part: str) -> str:
    """Return the path of the module whose output is added to the residual stream, or of the one that adds."""
    if layout.attn_skip:
        return layout.attn_skip if part == "attention" else layout.mlp_skip
    if layout.post_ln:
        return layout.attn_proj if part == "attention" else layout.mlp_proj
    if part == "attention":
        return layout.attn_post_norm or layout.attn
    return layout.mlp_post_norm or layout.mlp
