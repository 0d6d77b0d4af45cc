"""BERT with parts changed, after Zhao et al. (2021): no FFN, linear parts, cut or weighted skips, or shared layers.

This file imports torch and transformers only, because ``save_pretrained`` writes a copy of it beside the weights. There
``AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)`` works without fastprobe.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import (
    BertForMaskedLM,
    BertLayer,
    BertModel,
    BertOutput,
    BertSelfAttention,
    BertSelfOutput,
)


class BertVariantConfig(BertConfig):
    """Configuration of BERT with the parts that are changed.

    Args:
        ffn: ``"gelu"`` as in BERT; ``"linear"``, without the activation; ``"none"``, without the FFN and its LayerNorm.
        attention: ``"softmax"`` as in BERT; ``"linear"``, without the softmax.
        attention_gelu: apply a GELU to the output of the attention, after W_O.
        no_skip_layers: layers without skip connections around attention and FFN.
        weighted_skip: give each skip connection a learned weight, initially 1.
        shared_layers: use one set of weights for all layers.
        kwargs: other options of ``BertConfig``.
    """

    model_type = "bert-variant"

    def __init__(
        self,
        ffn: str = "gelu",
        attention: str = "softmax",
        attention_gelu: bool = False,
        no_skip_layers: tuple[int, ...] = (),
        weighted_skip: bool = False,
        shared_layers: bool = False,
        **kwargs: Any,
    ):
        self.ffn = ffn
        self.attention = attention
        self.attention_gelu = attention_gelu
        self.no_skip_layers = list(no_skip_layers)
        self.weighted_skip = weighted_skip
        self.shared_layers = shared_layers
        super().__init__(**kwargs)


class WeightedSkip(nn.Module):
    """Skip connection ``f(x) + weight * x``, where the weight is a parameter or a constant."""

    def __init__(self, weight: float, learned: bool):
        super().__init__()
        self.weight: Any = nn.Parameter(torch.tensor(weight)) if learned else weight

    def forward(self, added: Tensor, state: Tensor) -> Tensor:
        return added + self.weight * state


class LinearSelfAttention(BertSelfAttention):
    """Attention without softmax, ``sum_j (q_i k_j / sqrt(d)) v_j``, computed as ``q_i (sum_j k_j v_j)``.

    The sum leaves padding out. In the code of Zhao et al. padding takes part with weight -10000.
    """

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, past_key_values: Any = None, **_: Any
    ) -> Any:
        heads = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        query, key, value = (
            project(hidden_states).view(heads).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        if attention_mask is not None:  # (batch, 1, query, key); False or a large negative number masks a key
            visible = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
            key = key * visible[:, :, 0, :, None]
        out = query @ (key.mT @ value * self.scaling)
        return out.transpose(1, 2).flatten(2), None


class _SkipsByWeight:
    """Mixin that computes ``LayerNorm(dropout(dense(x)) + weight * input)`` in BERT's two blocks of that form."""

    dense: Any
    dropout: Any
    LayerNorm: Any
    skip: WeightedSkip

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        added = self.dropout(self.dense(hidden_states))
        return self.LayerNorm(self.skip(added, input_tensor))


class BertVariantSelfOutput(_SkipsByWeight, BertSelfOutput):
    """End of the attention sub-layer: W_O, skip connection and LayerNorm."""


class BertVariantOutput(_SkipsByWeight, BertOutput):
    """End of the FFN sub-layer: second matrix, skip connection and LayerNorm."""


class BertVariantLayer(BertLayer):
    """Layer of BERT with the changes of a configuration."""

    def __init__(self, config: BertVariantConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.has_ffn = config.ffn != "none"
        if config.attention == "linear":
            self.attention.self = LinearSelfAttention(config, layer_idx=layer_idx)
        end: Any = BertVariantSelfOutput(config)
        end.skip = self._skip(config, layer_idx)
        if config.attention_gelu:
            end.dense = nn.Sequential(end.dense, nn.GELU())
        self.attention.output = end
        if not self.has_ffn:
            del self.intermediate, self.output
            return
        self.output = BertVariantOutput(config)
        self.output.skip = self._skip(config, layer_idx)
        if config.ffn == "linear":
            self.intermediate.intermediate_act_fn = nn.Identity()

    @staticmethod
    def _skip(config: BertVariantConfig, layer: int) -> WeightedSkip:
        cut = layer in config.no_skip_layers
        return WeightedSkip(0.0 if cut else 1.0, learned=config.weighted_skip and not cut)

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        return super().feed_forward_chunk(attention_output) if self.has_ffn else attention_output


class BertVariantModel(BertModel):
    """Encoder of a BERT variant."""

    config_class = BertVariantConfig
    _supports_flash_attn = False  # its mask has another form than linear attention reads
    _supports_flex_attn = False

    def __init__(self, config: BertVariantConfig, add_pooling_layer: bool = False):
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        layers = range(config.num_hidden_layers)
        self.encoder.layer = nn.ModuleList(BertVariantLayer(config, layer) for layer in layers)
        if config.shared_layers:
            # Separate modules with tied weights, so that a single layer can be hooked, moved or left out.
            names = [name for name, _ in self.encoder.layer[0].named_parameters()]
            first = "encoder.layer.0."
            self._tied_weights_keys = {
                f"encoder.layer.{layer}.{name}": first + name for layer in layers[1:] for name in names
            }
        self.post_init()


class BertVariantForMaskedLM(BertForMaskedLM):
    """Encoder of a BERT variant with BERT's masked language-model head."""

    config_class = BertVariantConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: BertVariantConfig):
        super().__init__(config)
        self.bert = BertVariantModel(config)
        self.post_init()

    def predict(self, labels: Tensor, **inputs: Any) -> Tensor:
        """Return the logits of the tokens whose label is not -100, ``(tokens, vocabulary)``, and compute no others."""
        states = self.bert(**inputs, return_dict=True).last_hidden_state
        return self.cls(states[labels != -100])

    def forward(
        self, *args: Any, labels: Tensor | None = None, num_items_in_batch: Tensor | None = None, **inputs: Any
    ) -> MaskedLMOutput:
        """Run the model as ``BertForMaskedLM`` does. In training the logits are those of :meth:`predict`.

        Args:
            args: positional arguments of ``BertForMaskedLM``.
            labels: ``(batch, length)`` int64, -100 where nothing is predicted.
            num_items_in_batch: divisor of the sum of the losses; by default the number of labels.
            inputs: other arguments of ``BertForMaskedLM``.
        """
        if labels is None or not self.training or args:
            return super().forward(*args, labels=labels, **inputs)
        logits = self.predict(labels, **inputs)
        total = F.cross_entropy(logits, labels[labels != -100], reduction="sum")
        count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return MaskedLMOutput(loss=total / count, logits=logits)


AutoConfig.register(BertVariantConfig.model_type, BertVariantConfig)
AutoModel.register(BertVariantConfig, BertVariantModel)
AutoModelForMaskedLM.register(BertVariantConfig, BertVariantForMaskedLM)
BertVariantConfig.register_for_auto_class()
BertVariantModel.register_for_auto_class("AutoModel")
BertVariantForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
