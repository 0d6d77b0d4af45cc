"""The forward pass of a BERT-family encoder on flat, unpadded tokens, with the weights of its Hugging Face modules.

What is run here is what those modules compute; ``models/refusals.py`` turns away whatever is not exactly one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.errors import InputError
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.unpadded.refusals import BATCH_KEYS
from fastprobe.models.unpadded.tokens import FlatTokens
from fastprobe.ops.encoder.attention_sublayer import attention_sublayer
from fastprobe.ops.encoder.ffn_sublayer import ffn_sublayer
from fastprobe.ops.encoder.layers import Norm
from fastprobe.ops.products import linear

Points = dict[str, Tensor | None]
"""Names of the points of a layer that are wanted; the layer puts the points there, ``(N, width)`` each."""


class Encoder:
    """A BERT-family encoder whose states are ``(N, width)``, the tokens of a batch without padding.

    Args:
        model: a Hugging Face model in evaluation mode that ``encoder_refuses`` takes.
        points: where its layers are.
    """

    def __init__(self, model: nn.Module, points: ModelPoints):
        self._body: Any = getattr(model, "base_model", model)
        self.layers = tuple(EncoderLayer(layer) for layer in points.layers)

    def stem(self, batch: Mapping[str, Any], flat: FlatTokens) -> Tensor:
        """The state that the first layer is handed, ``(N, width)``.

        Raises:
            InputError: the batch has something that is not known here.
        """
        if unknown := batch.keys() - BATCH_KEYS:
            raise InputError(f"batches: {', '.join(sorted(unknown))} came in a batch but not in the first one")
        embeddings, ids = self._body.embeddings, batch["input_ids"]
        positions = batch.get("position_ids")
        if positions is None and hasattr(embeddings, "create_position_ids_from_input_ids"):
            positions = embeddings.create_position_ids_from_input_ids(ids, embeddings.padding_idx)
        elif positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        types = batch.get("token_type_ids")
        state = embeddings(
            input_ids=flat.flatten(ids)[None],
            position_ids=flat.flatten(positions.expand(ids.shape))[None],
            token_type_ids=None if types is None else flat.flatten(types.expand(ids.shape))[None],
        )[0]
        project = getattr(self._body, "embeddings_project", None)
        return state if project is None else project(state)


class EncoderLayer:
    """One post-LN layer: attention and FFN, each with its skip connection and LayerNorm."""

    def __init__(self, layer: Any):
        attention = layer.attention
        self._heads: int = attention.self.num_attention_heads
        self._query, self._key, self._value = attention.self.query, attention.self.key, attention.self.value
        self._out, self._attn_norm = attention.output.dense, attention.output.LayerNorm
        self._up, self._activation = layer.intermediate.dense, layer.intermediate.intermediate_act_fn
        self._down, self._mlp_norm = layer.output.dense, layer.output.LayerNorm

    def __call__(self, state: Tensor, flat: FlatTokens, copies: int = 1, points: Points | None = None) -> Tensor:
        """``(copies * N, width)`` to the same: that many states of the batch lie side by side."""
        return self.ffn(self.attention(state, flat, copies, points), points)

    def attention(self, state: Tensor, flat: FlatTokens, copies: int = 1, points: Points | None = None) -> Tensor:
        """The first half: ``resid_pre`` to ``resid_mid``."""
        points = {} if points is None else points
        layers = (_layer(self._query), _layer(self._key), _layer(self._value), _layer(self._out))
        keep = ("attn_heads" in points, "attn_out" in points)
        runs, norm = flat.runs * copies, _norm(self._attn_norm)
        heads, out, mid = attention_sublayer(state, layers, runs, self._heads, norm, keep)
        _fill(points, attn_heads=heads, attn_out=out, resid_mid=mid)
        return mid

    def ffn(self, mid: Tensor, points: Points | None = None) -> Tensor:
        """The second half: ``resid_mid`` to ``resid_post``."""
        points = {} if points is None else points
        down, norm, kept = _layer(self._down), _norm(self._mlp_norm), "mlp_out" in points
        act: Tensor | None
        if _is_gelu(self._activation):
            layers, keep = [_layer(self._up), down], ["mlp_act" in points, kept]
            (act, out), post = ffn_sublayer(mid, layers, mid, norm, keep)
        else:
            act = self._activation(linear(mid, *_layer(self._up)))
            (out,), post = ffn_sublayer(act, [down], mid, norm, [kept])
        _fill(points, mlp_act=act, mlp_out=out, resid_post=post)
        return post


def _layer(module: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return module.weight, module.bias


def _norm(module: nn.LayerNorm) -> Norm:
    return Norm(module.weight, module.bias, module.eps)


def _is_gelu(activation: Any) -> bool:
    return getattr(activation, "act", None) is nn.functional.gelu


def _fill(points: Points, **known: Tensor | None) -> None:
    points.update({name: tensor for name, tensor in known.items() if name in points})
