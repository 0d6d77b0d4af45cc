"""Skip connections of a live model scaled, for the time of a block: what does a layer do without them?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.record import first_input, first_tensor
from fastprobe.models.resolve import Layout, ModelPoints, resolve

PARTS = ("attention", "ffn")


@contextmanager
def skip_scale(
    model: nn.Module,
    scale: float | Mapping[int, float],
    *,
    parts: Iterable[str] = PARTS,
) -> Iterator[nn.Module]:
    """The model with ``scale * x + f(x)`` in the place of ``x + f(x)``; 0 cuts a skip connection, as Zhao et al. do.

    What a sub-layer adds is changed by ``(scale - 1) x``, so a result is exact to the rounding of x.

    Args:
        model: a Hugging Face encoder or decoder.
        scale: one number for all layers, or layer -> number; layers that are not named stay as they are.
        parts: which skips of a layer: ``"attention"``, ``"ffn"``, or both.

    Raises:
        InputError: there is no such layer or part, or a scale is no finite number.
        UnsupportedModelError: attention and FFN share one skip connection, or there is no FFN and only its skip
            connection is to be scaled.

    Example:
        >>> with skip_scale(model, {3: 0.0}, parts=["ffn"]):  # doctest: +SKIP
        ...     effects = commutativity(model, batches, fp.orders.swaps(12))
    """
    points = resolve(model)
    depth = len(points.layers)
    scales = dict(scale) if isinstance(scale, Mapping) else dict.fromkeys(range(depth), scale)
    parts = tuple(parts)
    for layer, factor in scales.items():
        if not 0 <= layer < depth:
            raise InputError(f"skip_scale: there is no layer {layer}; the model has 0 to {depth - 1}")
        if not isinstance(factor, int | float) or not math.isfinite(factor):
            raise InputError(f"skip_scale: {factor!r} is no finite number; 0 cuts a skip connection, 1 leaves it")
    for part in parts:
        if part not in PARTS:
            raise InputError(f"skip_scale: {part!r} is not one of {', '.join(PARTS)}")
    if points.parallel:
        raise UnsupportedModelError("skip_scale: attention and FFN of this model share one skip connection")
    if not points.has_ffn and "attention" not in parts:
        raise UnsupportedModelError("skip_scale: this model has no FFN, and so no skip connection around one")
    with ExitStack() as stack:
        for index, factor in scales.items():
            for part in parts if points.has_ffn else ["attention"]:
                for handle in _scaled(points, points.layers[index], part, factor):
                    stack.callback(handle.remove)
        yield model


def _scaled(points: ModelPoints, block: nn.Module, part: str, factor: float) -> list[RemovableHandle]:
    """The hooks on a layer that scale one of its skip connections."""
    layout = points.layout
    if layout.attn_skip:  # a module adds the two: it gets the state scaled
        skip = block.get_submodule(layout.attn_skip if part == "attention" else layout.mlp_skip)
        return [skip.register_forward_pre_hook(lambda _, sides: (sides[0], factor * sides[1]))]
    state = _State()
    middle = points.places["resid_mid"]
    source = block.get_submodule(middle.module) if part == "ffn" else block
    if part == "ffn" and middle.output:
        noted = source.register_forward_hook(state.of_output)
    else:
        noted = source.register_forward_pre_hook(state.of_input, with_kwargs=True)
    return [noted, block.get_submodule(_added(layout, part)).register_forward_hook(state.less(1 - factor))]


class _State:
    """The state that a sub-layer is added to."""

    value: Tensor

    def of_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.value = first_input(args, kwargs)

    def of_output(self, _: nn.Module, __: Any, result: Any) -> None:
        self.value = first_tensor(result)

    def less(self, share: float) -> Any:
        """A hook that takes a share of the state off a module's output."""

        def hook(_: nn.Module, __: Any, result: Any) -> Any:
            out = first_tensor(result) - share * self.value
            return out if isinstance(result, Tensor) else (out, *result[1:])

        return hook


def _added(layout: Layout, part: str) -> str:
    """The module whose output is added to the state."""
    if layout.post_ln:
        return layout.attn_proj if part == "attention" else layout.mlp_proj
    if part == "attention":
        return layout.attn_post_norm or layout.attn
    return layout.mlp_post_norm or layout.mlp
