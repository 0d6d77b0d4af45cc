"""Identities between the points of one layer, by layout. They hold if every point was found in the right place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from fastprobe.models.calling import first_tensor
from fastprobe.models.resolve import ModelPoints


class Equation(NamedTuple):
    """An identity that is not checked yet."""

    text: str
    left: Tensor  # (batch, length, width)
    right: Tensor
    inside: tuple[str, ...]  # its points other than the input and the output of the layer


At = Callable[[str], Tensor]
"""From the name of a point to its tensor in this layer, ``(batch, length, width)``."""


def equations_of(points: ModelPoints, layer: nn.Module, at: At) -> list[Equation]:
    """Return the identities of a layer. The left-hand sides are computed by its modules.

    Args:
        points: the places of the points and the layout of the layers.
        layer: one layer of the model.
        at: the tensors of its points.
    """
    layout = points.layout
    if layout.attn_skip:
        return _with_skip_modules(points, layer, at)
    attn_proj, mlp_proj = _module(layer, layout.attn_proj), _module(layer, layout.mlp_proj)
    products = [
        Equation(
            "attn_proj(attn_heads) = attn_out", attn_proj(at("attn_heads")), at("attn_out"), ("attn_heads", "attn_out")
        ),
        Equation("mlp_proj(mlp_act) = mlp_out", mlp_proj(at("mlp_act")), at("mlp_out"), ("mlp_act", "mlp_out")),
    ]
    return products + (_post_ln if layout.post_ln else _pre_ln)(points, layer, at)


def _post_ln(points: ModelPoints, layer: nn.Module, at: At) -> list[Equation]:
    """Return the identities of a norm after each residual sum."""
    attn_norm, mlp_norm = _module(layer, points.layout.attn_norm), _module(layer, points.layout.mlp_norm)
    attn_sum, mlp_sum = at("attn_out") + at("resid_pre"), at("mlp_out") + at("resid_mid")
    return [
        Equation(
            "norm(attn_out + resid_pre) = resid_mid", attn_norm(attn_sum), at("resid_mid"), ("attn_out", "resid_mid")
        ),
        Equation(
            "norm(mlp_out + resid_mid) = resid_post", mlp_norm(mlp_sum), at("resid_post"), ("mlp_out", "resid_mid")
        ),
    ]


def _pre_ln(points: ModelPoints, layer: nn.Module, at: At) -> list[Equation]:
    """Return the identities of a norm before each sub-layer; another norm may follow the sub-layer."""
    layout = points.layout
    attn_norm, mlp_norm = _module(layer, layout.attn_norm), _module(layer, layout.mlp_norm)
    attn = _module(layer, layout.attn_post_norm)(at("attn_out"))
    mlp = _module(layer, layout.mlp_post_norm)(at("mlp_out"))
    attn_text = "norm(attn_out)" if layout.attn_post_norm else "attn_out"
    mlp_text = "norm(mlp_out)" if layout.mlp_post_norm else "mlp_out"
    before = Equation("norm(resid_pre) = attn_in", attn_norm(at("resid_pre")), at("attn_in"), ("attn_in",))
    if points.parallel:
        return [
            before,
            Equation(
                "resid_pre + attn_out + mlp_out = resid_post",
                at("resid_pre") + attn + mlp,
                at("resid_post"),
                ("attn_out", "mlp_out"),
            ),
        ]
    return [
        before,
        Equation(
            f"resid_pre + {attn_text} = resid_mid", at("resid_pre") + attn, at("resid_mid"), ("attn_out", "resid_mid")
        ),
        Equation("norm(resid_mid) = mlp_in", mlp_norm(at("resid_mid")), at("mlp_in"), ("resid_mid", "mlp_in")),
        Equation(
            f"resid_mid + {mlp_text} = resid_post", at("resid_mid") + mlp, at("resid_post"), ("resid_mid", "mlp_out")
        ),
    ]


def _with_skip_modules(points: ModelPoints, layer: nn.Module, at: At) -> list[Equation]:
    """Return the identities of a post-LN layer whose skip connections are modules, with an FFN or without."""
    layout = points.layout
    attn_proj, attn_norm = _module(layer, layout.attn_proj), _module(layer, layout.attn_norm)
    attn_skip = layer.get_submodule(layout.attn_skip)
    attention = [
        Equation(
            "attn_proj(attn_heads) = attn_out", attn_proj(at("attn_heads")), at("attn_out"), ("attn_heads", "attn_out")
        ),
        Equation(
            "skip(attn_out, resid_pre) = attn_sum",
            attn_skip(at("attn_out"), at("resid_pre")),
            at("attn_sum"),
            ("attn_out", "attn_sum"),
        ),
        Equation("norm(attn_sum) = resid_mid", attn_norm(at("attn_sum")), at("resid_mid"), ("attn_sum", "resid_mid")),
    ]
    if not points.has_ffn:
        return attention
    mlp_proj, mlp_norm = _module(layer, layout.mlp_proj), _module(layer, layout.mlp_norm)
    mlp_skip = layer.get_submodule(layout.mlp_skip)
    return [
        *attention,
        Equation("mlp_proj(mlp_act) = mlp_out", mlp_proj(at("mlp_act")), at("mlp_out"), ("mlp_act", "mlp_out")),
        Equation(
            "skip(mlp_out, resid_mid) = mlp_sum",
            mlp_skip(at("mlp_out"), at("resid_mid")),
            at("mlp_sum"),
            ("mlp_out", "resid_mid", "mlp_sum"),
        ),
        Equation("norm(mlp_sum) = resid_post", mlp_norm(at("mlp_sum")), at("resid_post"), ("mlp_sum",)),
    ]


def _module(layer: nn.Module, path: str) -> Callable[[Tensor], Tensor]:
    """Return a module of a layer as a function of hidden states; the identity for the path ``""``."""
    if not path:
        return lambda states: states
    module = layer.get_submodule(path)
    return lambda states: first_tensor(module(states))
