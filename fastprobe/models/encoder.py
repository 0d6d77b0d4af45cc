"""The forward pass of a BERT-family encoder on flat, unpadded tokens, with the weights of its Hugging Face modules.

What is run here is what those modules compute; ``models/refusals.py`` turns away whatever is not exactly one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.errors import InputError
from fastprobe.models.flat import FlatTokens
from fastprobe.models.refusals import BATCH_KEYS
from fastprobe.models.resolve import ModelPoints
from fastprobe.ops import add_norm, bias_gelu_, linear, varlen_attention

Seen = Callable[[str, Tensor], None]
"""Called with each point of a layer by name, ``(N, width)``, as soon as it is there."""


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

    def __call__(self, state: Tensor, flat: FlatTokens, copies: int = 1, seen: Seen | None = None) -> Tensor:
        """``(copies * N, width)`` to the same: that many states of the batch lie side by side."""
        return self.ffn(self.attention(state, flat, copies, seen), seen)

    def attention(self, state: Tensor, flat: FlatTokens, copies: int = 1, seen: Seen | None = None) -> Tensor:
        """The first half: ``resid_pre`` to ``resid_mid``."""
        q, k, v = (_affine(state, module) for module in (self._query, self._key, self._value))
        heads = varlen_attention(q, k, v, flat.runs * copies, self._heads)
        _show(seen, "attn_heads", heads)
        out = _affine(heads, self._out)
        _show(seen, "attn_out", out)
        mid = _add_norm(out, state, self._attn_norm)
        _show(seen, "resid_mid", mid)
        return mid

    def ffn(self, mid: Tensor, seen: Seen | None = None) -> Tensor:
        """The second half: ``resid_mid`` to ``resid_post``."""
        if _is_gelu(self._activation) and self._up.bias is not None:
            act = linear(mid, self._up.weight, None)
            bias_gelu_(act, self._up.bias)
        else:
            act = self._activation(_affine(mid, self._up))
        _show(seen, "mlp_act", act)
        out = _affine(act, self._down)
        _show(seen, "mlp_out", out)
        post = _add_norm(out, mid, self._mlp_norm)
        _show(seen, "resid_post", post)
        return post


def _affine(x: Tensor, module: nn.Linear) -> Tensor:
    return linear(x, module.weight, module.bias)


def _add_norm(x: Tensor, residual: Tensor, norm: nn.LayerNorm) -> Tensor:
    return add_norm(x, residual, norm.weight, norm.bias, norm.eps)


def _is_gelu(activation: Any) -> bool:
    return getattr(activation, "act", None) is nn.functional.gelu


def _show(seen: Seen | None, name: str, tensor: Tensor) -> None:
    if seen is not None:
        seen(name, tensor)
