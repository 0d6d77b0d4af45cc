"""Identities between the points of one layer, by its layout. They hold if every point was found in the right place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

from fastprobe.models.calling import first_tensor
from fastprobe.models.layer_points import LayerPoints
from fastprobe.models.layouts import Part


class Equation(NamedTuple):
    """An identity that is not checked yet."""

    text: str
    left: Tensor  # (batch, length, width)
    right: Tensor
    inside: tuple[str, ...]  # its points other than the input and the output of the layer


At = Callable[[str], Tensor]
"""From the name of a point to its tensor in this layer, ``(batch, length, width)``."""


def equations_of(points: LayerPoints, layer: nn.Module, at: At) -> list[Equation]:
    """Return the identities of a layer. The left-hand sides are computed by its modules.

    Args:
        points: the places of the points of the layer and its layout.
        layer: one layer of the model.
        at: the tensors of its points.
    """
    layout = points.layout
    found = []
    for part, names in ((layout.attn, _ATTENTION), (layout.mlp, _FFN)):
        if part is not None and part.proj:
            found.append(_product(part, layer, at, names))
    if layout.parallel and layout.attn is not None and layout.mlp is not None:
        return [*found, *_parallel(layout.attn, layout.mlp, layer, at)]
    between = points.aliases.get("resid_mid", "resid_mid")
    if layout.attn is not None:
        after = between if layout.mlp is not None or layout.mid is not None else "resid_post"
        found += _sublayer(layout.attn, layer, at, _ATTENTION, "resid_pre", "" if layout.others else after)
    if layout.mlp is not None:
        found += _sublayer(layout.mlp, layer, at, _FFN, between, "resid_post")
    return found


_ATTENTION = ("attn_in", "attn_heads", "attn_out", "attn_sum", "attn_proj")
_FFN = ("mlp_in", "mlp_act", "mlp_out", "mlp_sum", "mlp_proj")
"""Names of a part's input, of the input of its last matrix, of its output, of the residual sum, and of the matrix."""


def _product(part: Part, layer: nn.Module, at: At, names: tuple[str, ...]) -> Equation:
    """Return the identity of the last matrix of a part."""
    _, inner, out, _, proj = names
    return Equation(f"{proj}({inner}) = {out}", _module(layer, part.proj)(at(inner)), at(out), (inner, out))


def _sublayer(
    part: Part, layer: nn.Module, at: At, names: tuple[str, ...], before: str, after: str
) -> Iterator[Equation]:
    """Yield the identities of a sub-layer between two states; ``after`` is "" where others follow before it ends."""
    given, _, out, total, _ = names
    if part.norm:
        norm = _module(layer, part.norm)(at(before))
        yield Equation(f"norm({before}) = {given}", norm, at(given), (before, given))
    if not after:
        return
    if part.adds:
        adds = layer.get_submodule(part.adds)
        yield Equation(f"skip({out}, {before}) = {total}", adds(at(out), at(before)), at(total), (out, before, total))
        if part.sum_norm:
            norm = _module(layer, part.sum_norm)(at(total))
            yield Equation(f"norm({total}) = {after}", norm, at(after), (total, after))
        return
    carried = given if part.skips_norm else before
    added, text = _added(part, layer, at, out)
    skip = _times(part.skip, at(carried))
    if part.sum_norm:  # the order of the summands is that of most models with a norm here
        left = _module(layer, part.sum_norm)(added + skip)
        text = f"norm({text} + {_factor(part.skip)}{carried})"
    else:
        left, text = skip + added, f"{_factor(part.skip)}{carried} + {text}"
    yield Equation(f"{text} = {after}", left, at(after), (out, carried, after))


def _parallel(attn: Part, mlp: Part, layer: nn.Module, at: At) -> Iterator[Equation]:
    """Yield the identities of attention and FFN that read one state."""
    for part, given in ((attn, "attn_in"), (mlp, "mlp_in")):
        if part.norm:
            norm = _module(layer, part.norm)(at("resid_pre"))
            yield Equation(f"norm(resid_pre) = {given}", norm, at(given), (given,))
    (first, first_text), (second, second_text) = (
        _added(part, layer, at, out) for part, out in ((attn, "attn_out"), (mlp, "mlp_out"))
    )
    carried = "attn_in" if attn.skips_norm else "resid_pre"
    left = _times(attn.skip, at(carried)) + first + second
    text = f"{_factor(attn.skip)}{carried} + {first_text} + {second_text} = resid_post"
    yield Equation(text, left, at("resid_post"), ("attn_out", "mlp_out", carried))


def _added(part: Part, layer: nn.Module, at: At, out: str) -> tuple[Tensor, str]:
    """Return what a part adds to the residual stream, and its text."""
    added = _module(layer, part.post_norm)(at(out))
    text = f"norm({out})" if part.post_norm else out
    return _times(part.scale, added), _factor(part.scale) + text


def _times(factor: float, states: Tensor) -> Tensor:
    return states if factor == 1 else factor * states


def _factor(factor: float) -> str:
    return "" if factor == 1 else f"{factor:.4g} "


def _module(layer: nn.Module, path: str) -> Callable[[Tensor], Tensor]:
    """Return a module of a layer as a function of hidden states; the identity for the path ``""``."""
    if not path:
        return lambda states: states
    module = layer.get_submodule(path)
    return lambda states: first_tensor(module(states))
