"""The points of one layer: their places, from the layout of the layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fastprobe.models.layouts import Layout, Part
from fastprobe.models.places import Place
from fastprobe.models.points import ELEMENTS, POINTS


@dataclass(frozen=True)
class LayerPoints:
    """The places of the points of one layer.

    Some points are another name of the same tensor (``aliases``), some are the sum of two others (``sums``).
    """

    layout: Layout
    places: Mapping[str, Place]  # name of a point -> where its tensor is read
    aliases: Mapping[str, str]  # name of a point -> the point of the same layer that is the same tensor
    sums: Mapping[str, tuple[str, str]]  # name of a point -> the two points of the same layer whose sum it is

    @classmethod
    def of(cls, layout: Layout) -> LayerPoints:
        """Return the points of a layer with a layout."""
        places = {"resid_pre": Place("", False), "resid_post": Place("", True)}
        aliases: dict[str, str] = {}
        sums: dict[str, tuple[str, str]] = {}
        after_attention = "resid_post"
        if layout.mlp is not None and not layout.parallel:
            after_attention = "resid_mid"
            if layout.attn is None and not layout.others:
                aliases["resid_mid"] = "resid_pre"
        elif layout.mid is not None:
            after_attention = "resid_mid"
        elif layout.attn is not None and not layout.parallel:
            aliases["resid_mid"] = "resid_post"
        if layout.mid is not None:
            places["resid_mid"] = layout.mid
        if layout.attn is not None:
            _add(layout.attn, ("attn_in", "attn_heads", "attn_out"), "resid_pre", places, aliases)
            if not layout.parallel and not layout.others:
                _add_sum("attn_sum", layout.attn, ("attn_out", "resid_pre"), after_attention, places, aliases, sums)
        if layout.mlp is not None:
            before = "resid_pre" if layout.parallel else aliases.get("resid_mid", "resid_mid")
            _add(layout.mlp, ("mlp_in", "mlp_act", "mlp_out"), before, places, aliases)
            _add_sum("mlp_sum", layout.mlp, ("mlp_out", before), "resid_post", places, aliases, sums)
        if layout.parallel and places.get("mlp_in", 0) == places.get("attn_in", 1):
            del places["mlp_in"]
            aliases["mlp_in"] = "attn_in"
        aliases = {name: aliases.get(other, other) for name, other in aliases.items()}
        places = {name: replace(place, copy=place.module in layout.changed) for name, place in places.items()}
        return cls(layout, {name: places[name] for name in POINTS if name in places}, aliases, sums)

    @property
    def known(self) -> set[str]:
        """Names of the points that the layer has."""
        return {*self.places, *self.aliases, *self.sums}

    @property
    def elements(self) -> list[str]:
        """Names of the elements of the layer: pairs of its points that are two different tensors."""
        pairs = {name: pair for name, pair in ELEMENTS.items() if self.known.issuperset(pair)}
        return [name for name, (x, y) in pairs.items() if self.aliases.get(x, x) != self.aliases.get(y, y)]

    def place(self, name: str) -> Place:
        """Return where the tensor of a point is read."""
        return self.places[self.aliases.get(name, name)]


def _add(
    part: Part, names: tuple[str, str, str], before: str, places: dict[str, Place], aliases: dict[str, str]
) -> None:
    """Add the input, the input of the last matrix and the output of a part."""
    given, inner, out = names
    if part.norm:
        places[given] = Place(part.norm, True)
    else:
        aliases[given] = before
    if part.proj:
        places[inner] = Place(part.proj, False)
    places[out] = Place(part.out, True)


def _add_sum(
    name: str,
    part: Part,
    parts: tuple[str, str],
    after: str,
    places: dict[str, Place],
    aliases: dict[str, str],
    sums: dict[str, tuple[str, str]],
) -> None:
    """Add the residual sum of a part, which is the state after it unless a norm follows."""
    if part.adds:
        places[name] = Place(part.adds, True)
    elif not part.sum_norm:
        aliases[name] = after
    elif part.scale == part.skip == 1 and not part.post_norm and not part.skips_norm:
        sums[name] = parts
