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
from fastprobe.models.calling import first_tensor, uncompiled, with_first_tensor
from fastprobe.models.layouts import Part
from fastprobe.models.resolve import ModelPoints, resolve
from fastprobe.orders.order import in_one_line, integer

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
            for part in parts:
                for handle in _scaled(points, index, part, factor):
                    stack.callback(handle.remove)
        yield model


def _scaled(points: ModelPoints, layer: int, name: str, factor: float) -> list[RemovableHandle]:
    """Register the hooks on a layer that scale one of its skip connections; none if it lacks the part."""
    block, found = points.layers[layer], points.found[layer]
    part: Part | None = found.layout.attn if name == "attention" else found.layout.mlp
    if part is None:
        return []
    if part.adds:  # a module computes the sum, so its second argument is scaled
        adds = block.get_submodule(part.adds)
        return [adds.register_forward_pre_hook(lambda _, sides: (sides[0], factor * sides[1]))]
    state: dict[str, Tensor] = {}  # what the skip connection carries now
    less = (1 - factor) * part.skip / part.scale

    def subtract(_: nn.Module, __: Any, result: Any) -> Any:
        return with_first_tensor(result, first_tensor(result) - less * state["x"])

    carried = {"attention": ("resid_pre", "attn_in"), "ffn": ("resid_mid", "mlp_in")}[name][part.skips_norm]
    return [
        found.place(carried).read(block, lambda x: state.update(x=x)),
        block.get_submodule(part.added).register_forward_hook(subtract),
    ]
