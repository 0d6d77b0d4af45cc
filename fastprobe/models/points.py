"""Names of points, the places of a model where a tensor can be read, and of elements, pairs of points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastprobe.errors import InputError
from fastprobe.orders.arguments import in_one_line, integer, integers, iterable

POINTS = (
    "resid_pre",
    "attn_in",
    "attn_heads",
    "attn_out",
    "attn_sum",
    "resid_mid",
    "mlp_in",
    "mlp_act",
    "mlp_out",
    "mlp_sum",
    "resid_post",
)
"""The points of one layer, in the order of a forward pass."""

ELEMENTS = {
    "layer": ("resid_pre", "resid_post"),
    "attention": ("resid_pre", "resid_mid"),
    "ffn": ("resid_mid", "resid_post"),
    "attention_sum": ("resid_pre", "attn_sum"),
    "ffn_sum": ("resid_mid", "mlp_sum"),
    "attn": ("attn_in", "attn_out"),
    "attn_heads": ("attn_in", "attn_heads"),
    "attn_proj": ("attn_heads", "attn_out"),
    "mlp": ("mlp_in", "mlp_out"),
    "mlp_act": ("mlp_in", "mlp_act"),
}
"""The elements of one layer: name -> (point x, point y)."""


@dataclass(frozen=True, order=True)
class Point:
    """A place where a (tokens, width) tensor can be read, written ``resid_pre.3``. Layers are 0-based."""

    name: str
    layer: int

    def __str__(self) -> str:
        return f"{self.name}.{self.layer}"


@dataclass(frozen=True)
class Element:
    """A pair of points x -> y, of one layer or of a span of layers ``[start, stop)``."""

    name: str
    start: int
    stop: int

    @property
    def is_span(self) -> bool:
        """True if the element is a span of layers."""
        return self.name == "span"

    @property
    def x(self) -> Point:
        """The input."""
        return Point("resid_pre" if self.is_span else ELEMENTS[self.name][0], self.start)

    @property
    def y(self) -> Point:
        """The output."""
        return Point("resid_post" if self.is_span else ELEMENTS[self.name][1], self.stop - 1)

    def __str__(self) -> str:
        return f"span.{self.start}-{self.stop}" if self.is_span else f"{self.name}.{self.start}"


def select_layers(layers: Iterable[int] | None, depth: int) -> list[int]:
    """Return the selected layers, sorted and without duplicates; all layers for ``None``.

    Raises:
        InputError: a layer is not an integer, or not in a model of ``depth`` layers.
    """
    if layers is None:
        return list(range(depth))
    chosen = sorted(set(integers(layers, "layers")))
    for layer in chosen:
        if not 0 <= layer < depth:
            raise InputError(f"layers: there is no layer {layer}; the model has layers 0 to {depth - 1}")
    return chosen


def select_elements(names: Sequence[str] | None, available: Sequence[str]) -> list[str]:
    """Return the names of the selected elements in their order without duplicates; all available ones for ``None``.

    Raises:
        InputError: a name is not an element, or the model does not have the element.
    """
    if names is None:
        return list(available)
    for name in iterable(names, "elements", "names"):
        if not isinstance(name, str) or name not in ELEMENTS:
            raise InputError(f"elements: unknown element {in_one_line(name)}; the elements are {', '.join(ELEMENTS)}")
        if name not in available:
            raise InputError(f"elements: this model has no {name!r}; it has {', '.join(available)}")
    return list(dict.fromkeys(names))


def select_spans(spans: str | Iterable[tuple[int, int]] | None, depth: int) -> list[tuple[int, int]]:
    """Return half-open ranges of layers from ``"all"``, ``"none"``, ``"2-5,0-3"`` or pairs of integers.

    Raises:
        InputError: a range is empty or outside a model of ``depth`` layers.
    """
    if spans is None or (isinstance(spans, str) and spans == "none"):
        return []
    if isinstance(spans, str) and spans == "all":
        return [(i, j) for i in range(depth) for j in range(i + 1, depth + 1)]
    pairs = (
        [parse_range(text) for text in spans.split(",")]
        if isinstance(spans, str)
        else [_pair(pair) for pair in iterable(spans, "spans", "pairs of layers")]
    )
    for start, stop in pairs:
        if not 0 <= start < stop <= depth:
            raise InputError(f"spans: {start}-{stop} is not a range of layers with 0 <= start < stop <= {depth}")
    return list(dict.fromkeys(pairs))


def _pair(pair: Iterable[int]) -> tuple[int, int]:
    """Return the start and the end of a span."""
    ends = [integer(end, "spans") for end in iterable(pair, "spans", "pairs of layers")]
    if len(ends) != 2:
        raise InputError(f"spans: must be pairs of start and stop, got {len(ends)} numbers")
    return ends[0], ends[1]


def range_text(layers: Sequence[int]) -> str:
    """Return sorted layers as text of half-open ranges and single layers, such as ``"0-4,7"`` or ``"3"``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and runs[-1][1] == layer:
            runs[-1][1] = layer + 1
        else:
            runs.append([layer, layer + 1])
    return ",".join(str(start) if stop == start + 1 else f"{start}-{stop}" for start, stop in runs)


def parse_range(text: str) -> tuple[int, int]:
    """Return the half-open range of a text: (2, 5) for ``"2-5"``, (3, 4) for ``"3"``.

    Raises:
        InputError: the text is not a range.
    """
    first, dash, last = text.strip().partition("-")
    try:
        return (int(first), int(last)) if dash else (int(first), int(first) + 1)
    except ValueError:
        raise InputError(f"{text!r} is not a layer or a half-open range of layers like 2-5") from None
