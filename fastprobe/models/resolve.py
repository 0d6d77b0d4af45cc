"""Resolve the points of a model: find its list of layers, then the place of every point inside a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.layouts import LAYOUTS, Layout, layout_of
from fastprobe.models.places import Place
from fastprobe.models.points import ELEMENTS, POINTS, Element, Point


@dataclass(frozen=True)
class ModelPoints:
    """The layers of a model and the places of its points.

    Some points are another name of the same tensor (``aliases``), some are the sum of two others (``sums``).
    """

    layers: tuple[nn.Module, ...]
    layout: Layout
    places: Mapping[str, Place]  # name of a point -> where its tensor is read
    aliases: Mapping[str, str]  # name of a point -> the point of the same layer that is the same tensor
    sums: Mapping[str, tuple[str, str]]  # name of a point -> the two points of the same layer whose sum it is
    parallel: bool = False  # attention and FFN read the same state, so there is no state between them

    @property
    def has_ffn(self) -> bool:
        """True if the layers have an FFN; a layer without one ends with its attention."""
        return bool(self.layout.mlp_proj)

    @property
    def elements(self) -> list[str]:
        """Names of the elements of this model: pairs of its points that are two different tensors."""
        known = {*self.places, *self.aliases, *self.sums}
        pairs = {name: pair for name, pair in ELEMENTS.items() if known.issuperset(pair)}
        return [name for name, pair in pairs.items() if len({self.canonical(Point(point, 0)) for point in pair}) == 2]

    def canonical(self, point: Point) -> Point:
        """Return the canonical point of a tensor that has several names.

        The input of a layer, for example, is the output of the layer before it.
        """
        name = self.aliases.get(point.name, point.name)
        if name == "resid_pre" and point.layer > 0:
            return Point("resid_post", point.layer - 1)
        return Point(name, point.layer)

    def parts(self, point: Point) -> tuple[Point, Point] | None:
        """Return the two canonical points whose sum a canonical point is, or ``None`` if the point is read itself."""
        if point.name not in self.sums:
            return None
        first, second = self.sums[point.name]
        return self.canonical(Point(first, point.layer)), self.canonical(Point(second, point.layer))

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


def resolve(model: nn.Module) -> ModelPoints:
    """Find the layers of a Hugging Face model and the points inside them.

    Raises:
        InputError: ``model`` is not a ``torch.nn.Module``.
        UnsupportedModelError: no list of layers has a known layout, or the model is an encoder-decoder.
    """
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
    if stacks := _two_stacks(model):
        raise UnsupportedModelError(
            f"{_name(model)}: encoder-decoder models have two stacks of layers, {' and '.join(stacks)}; pass one "
            f"of them by itself, if its layers are as in {_families()}"
        )
    layers, layout = _find_layers(model)
    if layout.post_ln:
        return _post_ln_points(layers, layout)
    return _pre_ln_points(layers, layout, parallel=bool(getattr(layers[0], "use_parallel_residual", False)))


def _find_layers(model: nn.Module) -> tuple[tuple[nn.Module, ...], Layout]:
    """Return the longest ``ModuleList`` whose layers have a known layout."""
    lists = [
        tuple(getattr(layer, "_orig_mod", layer) for layer in module)  # layers that were compiled one by one
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    found = [(layers, layout) for layers in lists if (layout := layout_of(layers))]
    if not found:
        seen = ", ".join(dict.fromkeys(type(layer).__name__ for layers in lists for layer in layers)) or "none"
        raise UnsupportedModelError(
            f"{_name(model)}: no list of layers with a known structure was found (lists are of {seen}); the structures "
            f"known are {_families()}"
        )
    return max(found, key=lambda pair: len(pair[0]))


def _two_stacks(model: nn.Module) -> list[str]:
    """Return the paths of the encoder and the decoder of a model that has both, else nothing.

    An encoder that was taken out of such a model has its configuration, but one stack.
    """
    if not getattr(model.config, "is_encoder_decoder", False):
        return []
    with_layers = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("encoder", "decoder")
        and any(isinstance(inner, nn.ModuleList) and len(inner) for inner in module.modules())
    ]
    kinds = {name.rpartition(".")[2]: name for name in reversed(with_layers)}
    return [kinds["encoder"], kinds["decoder"]] if len(kinds) == 2 else []


def _families() -> str:
    return ", ".join(layout.family for layout in LAYOUTS)


def _post_ln_points(layers: tuple[nn.Module, ...], layout: Layout) -> ModelPoints:
    """Return the points of layers that normalise after each residual sum."""
    places = {
        "resid_pre": Place("", False),
        "attn_heads": Place(layout.attn_proj, False),
        "attn_out": Place(layout.attn_proj, True),
        "resid_post": Place("", True),
    }
    aliases = {"attn_in": "resid_pre"}
    sums = {"attn_sum": ("attn_out", "resid_pre")}
    skips = {"attn_sum": layout.attn_skip}
    if layout.mlp_proj:
        places |= {
            "resid_mid": Place(layout.attn_norm, True),
            "mlp_act": Place(layout.mlp_proj, False),
            "mlp_out": Place(layout.mlp_proj, True),
        }
        aliases["mlp_in"] = "resid_mid"
        sums["mlp_sum"] = ("mlp_out", "resid_mid")
        skips["mlp_sum"] = layout.mlp_skip
    else:
        aliases["resid_mid"] = "resid_post"
    for name, skip in skips.items():
        if skip:  # a module adds the skip connection, so the sum is its output
            places[name] = Place(skip, True)
            del sums[name]
    return ModelPoints(layers, layout, _in_order(places), aliases, sums)


def _pre_ln_points(layers: tuple[nn.Module, ...], layout: Layout, *, parallel: bool) -> ModelPoints:
    """Return the points of layers that normalise the input of each sub-layer."""
    places = {
        "resid_pre": Place("", False),
        "attn_in": Place(layout.attn_norm, True),
        "attn_heads": Place(layout.attn_proj, False),
        "attn_out": Place(layout.attn, True),
        "mlp_in": Place(layout.mlp_norm, True),
        "mlp_act": Place(layout.mlp_proj, False),
        "mlp_out": Place(layout.mlp, True),
        "resid_post": Place("", True),
    }
    aliases = {"mlp_sum": "resid_post"}
    if not parallel:
        places["resid_mid"] = Place(layout.mlp_norm, False)
        aliases["attn_sum"] = "resid_mid"
    return ModelPoints(layers, layout, _in_order(places), aliases, {}, parallel)


def _in_order(places: Mapping[str, Place]) -> dict[str, Place]:
    """Return places in the order of ``POINTS``, which is that of a forward pass."""
    return {name: places[name] for name in POINTS if name in places}


def _name(model: nn.Module) -> str:
    return getattr(model.config, "name_or_path", "") or type(model).__name__
