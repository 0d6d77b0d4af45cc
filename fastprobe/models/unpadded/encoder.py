"""Forward pass of a BERT-family encoder on unpadded tokens, with the weights of its Hugging Face modules.

The result is that of those modules up to rounding. ``refusals.py`` refuses every model that is not exactly known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.errors import InputError
from fastprobe.models.calling import body_of
from fastprobe.models.resolve import ModelPoints
from fastprobe.models.unpadded.refusals import BATCH_KEYS
from fastprobe.models.unpadded.tokens import UnpaddedTokens
from fastprobe.ops.encoder.attention_sublayer import attention_sublayer
from fastprobe.ops.encoder.ffn_sublayer import ffn_sublayer
from fastprobe.ops.encoder.layers import Norm
from fastprobe.ops.products import linear

WantedPoints = dict[str, Tensor | None]
"""Names of the points of a layer to return. The layer fills in their tensors, ``(N, width)`` each."""


class Encoder:
    """BERT-family encoder whose states are ``(N, width)``, the tokens of a batch without padding.

    Args:
        model: a Hugging Face model in evaluation mode for which ``encoder_refusal`` returns ``None``.
        points: its resolved points.
    """

    def __init__(self, model: nn.Module, points: ModelPoints):
        self._body = body_of(model)
        self.layers = tuple(EncoderLayer(layer) for layer in points.layers)

    def stem(self, batch: Mapping[str, Any], tokens: UnpaddedTokens) -> Tensor:
        """Return the state that the first layer receives, ``(N, width)``.

        Raises:
            InputError: the batch has an argument that is not supported here.
        """
        if unknown := batch.keys() - BATCH_KEYS:
            raise InputError(
                f"batches: a batch has {', '.join(sorted(unknown))}, which the first one does not have; "
                "give all batches the same tensors"
            )
        embeddings, ids = self._body.embeddings, batch["input_ids"]
        positions = batch.get("position_ids")
        if positions is None and hasattr(embeddings, "create_position_ids_from_input_ids"):
            positions = embeddings.create_position_ids_from_input_ids(ids, embeddings.padding_idx)
        elif positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        types = batch.get("token_type_ids")
        state = embeddings(
            input_ids=tokens.unpad(ids)[None],
            position_ids=tokens.unpad(positions.expand(ids.shape))[None],
            token_type_ids=None if types is None else tokens.unpad(types.expand(ids.shape))[None],
        )[0]
        project = getattr(self._body, "embeddings_project", None)
        return state if project is None else project(state)


class EncoderLayer:
    """Post-LN layer: attention and FFN, each with its skip connection and LayerNorm."""

    def __init__(self, layer: Any):
        attention = layer.attention
        self._heads: int = attention.self.num_attention_heads
        self._query, self._key, self._value = attention.self.query, attention.self.key, attention.self.value
        self._out, self._attn_norm = attention.output.dense, attention.output.LayerNorm
        self._up, self._activation = layer.intermediate.dense, layer.intermediate.intermediate_act_fn
        self._down, self._mlp_norm = layer.output.dense, layer.output.LayerNorm

    def __call__(
        self, state: Tensor, tokens: UnpaddedTokens, copies: int = 1, points: WantedPoints | None = None
    ) -> Tensor:
        """Run the layer on ``copies`` states of the batch, concatenated to ``(copies * N, width)``."""
        return self.ffn(self.attention(state, tokens, copies, points), points)

    def attention(
        self, state: Tensor, tokens: UnpaddedTokens, copies: int = 1, points: WantedPoints | None = None
    ) -> Tensor:
        """Run the attention sub-layer, from ``resid_pre`` to ``resid_mid``."""
        points = {} if points is None else points
        layers = (_layer(self._query), _layer(self._key), _layer(self._value), _layer(self._out))
        keep = ("attn_heads" in points, "attn_out" in points)
        runs, norm = tokens.runs * copies, _norm(self._attn_norm)
        heads, out, mid = attention_sublayer(state, layers, runs, self._heads, norm, keep)
        _fill(points, attn_heads=heads, attn_out=out, resid_mid=mid)
        return mid

    def ffn(self, mid: Tensor, points: WantedPoints | None = None) -> Tensor:
        """Run the FFN sub-layer, from ``resid_mid`` to ``resid_post``."""
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


def _fill(points: WantedPoints, **known: Tensor | None) -> None:
    points.update({name: tensor for name, tensor in known.items() if name in points})
