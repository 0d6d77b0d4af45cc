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
from fastprobe.models.calling import first_tensor, uncompiled, with_first_tensor
from fastprobe.models.identities import TOLERANCE
from fastprobe.models.layouts import Part
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
            for name in parts:
                found = _part(points, index, name)
                if factor == 1 or found is None:
                    continue
                _check_unshared(points, index, found)
                for handle in _scaled(points, index, name, found, factor):
                    stack.callback(handle.remove)
        yield model


def _part(points: ModelPoints, layer: int, name: str) -> Part | None:
    """Return the attention or the FFN of a layer, ``None`` if the layer lacks it."""
    layout = points.layouts[layer]
    return layout.attn if name == "attention" else layout.mlp


def _check_unshared(points: ModelPoints, layer: int, part: Part) -> None:
    """Raise an error if another layer runs the module whose hooks scale a skip connection of a layer."""
    module = points.layers[layer].get_submodule(part.adds or part.added)
    sharing = [i for i, other in enumerate(points.layers) if i != layer and any(m is module for m in other.modules())]
    if sharing:
        raise UnsupportedModelError(
            f"skip_scale: layers {layer} and {', '.join(map(str, sharing))} share one {type(module).__name__}, so the "
            "skip connection of one cannot be scaled alone; give each layer its own modules (copy.deepcopy)"
        )


def _scaled(points: ModelPoints, index: int, name: str, part: Part, factor: float) -> list[RemovableHandle]:
    """Register the hooks on a layer that scale one of its skip connections, and that check the first sum."""
    found, block = points.found[index], points.layers[index]
    added = block.get_submodule(part.adds or part.added)
    current: dict[str, Tensor] = {}  # x and f(x) of the current run
    checked: list[bool] = []
    less = (1 - factor) * part.skip / part.scale

    def subtract(_: nn.Module, __: Any, result: Any) -> Any:
        current["f"] = first_tensor(result)
        return with_first_tensor(result, current["f"] - less * current["x"])

    def scale(_: nn.Module, sides: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        current["f"] = sides[0]
        return sides[0], factor * sides[1]

    def check(total: Tensor) -> None:
        if checked or "x" not in current or torch.equal(total, current["x"]):  # the layer or its attention is left out
            return
        if "f" not in current:
            raise UnsupportedModelError(
                f"skip_scale: layer {index} does not call {part.adds or part.added}, so the skip connection of its "
                f"{name} cannot be scaled; use another part or layer"
            )
        checked.append(True)
        carried = factor * part.skip * current["x"].detach().double()
        expected = part.scale * current["f"].detach().double() + carried
        error = float((total.detach() - expected).norm() / expected.norm())
        if not part.adds and error > TOLERANCE.get(total.dtype, 1e-5):
            raise UnsupportedModelError(
                f"skip_scale: the skip connection of the {name} of layer {index} is no plain sum: the layer differs "
                f"from {factor} x + f(x) by {error:.1e} of its norm; use evaluation mode, or another part or layer"
            )

    read = {"attention": ("resid_pre", "attn_in"), "ffn": ("resid_mid", "mlp_in")}[name][part.skips_norm]
    handles = [
        block.register_forward_pre_hook(lambda *_: current.clear()),
        found.place(read).read(block, lambda x: current.update(x=x)),
    ]
    if (total := _sum(points, index, name, part)) is not None:
        handles.append(total.read(block, check))
    if part.adds:  # a module computes the sum, so its second argument is scaled
        return [*handles, added.register_forward_pre_hook(scale)]
    return [*handles, added.register_forward_hook(subtract)]


def _sum(points: ModelPoints, layer: int, name: str, part: Part) -> Place | None:
    """Return the place of the first sum after the skip connection of a part; ``None`` if no module reads it."""
    if part.sum_norm:
        return Place(part.sum_norm, False)
    if name == "ffn":
        return points.found[layer].place("resid_post")
    return None if points.layouts[layer].others else points.found[layer].place("resid_mid")
