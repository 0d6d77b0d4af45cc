"""Toy models of every model type of the installed Transformers, built from their configuration classes.

Tests and the table of supported models run over them. Sizes of a configuration are shrunk by the names of its fields,
so a model type needs no entry here.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

LAYERS = 3
SEED = 0
NOISE = 0.1
"""Standard deviation of the noise that is added to the initial weights, so that no part of a model is nearly linear."""

_SIZES: tuple[tuple[str, int], ...] = (
    (r"chunk_size_feed_forward", 0),
    (r"vocab_size(_per_layer_input)?|entity_vocab_size|n_vocab", 100),
    (r"(num_|n_)?(hidden_|encoder_|decoder_|attention_|block_)?layers?|depth|num_blocks|n_blocks", LAYERS),
    (r"rotary_dim|rope_head_dim|.*partial_rotary_dim", 4),
    (r".*head_dim|d_kv|.*_head_size|mamba_d_head|attention_head_dim|kv_channels", 8),
    (r".*lora_rank|.*_rank", 16),
    (r".*(num|n)_heads?|.*attention_heads|num_heads|n_heads?|.*_n_heads|heads|.*_num_heads", 4),
    (r".*(experts_per_tok|topk$|top_k$|moe_k$|experts_per_token|num_selected_experts|moe_top_k|moe_topk).*", 2),
    (r".*(num_experts|n_routed_experts|num_local_experts|moe_num_experts|n_experts).*", 4),
    (r"n_group|topk_group|n_shared_experts|.*num_groups|n_groups|mamba_n_groups", 1),
    (r".*(intermediate|ffn_dim|d_ff|n_inner|inner_dim|ffn_hidden|mlp_dim|feed_forward|ff_dim|d_inner).*", 64),
    (r".*(state_size|d_state|d_conv|conv_kernel|conv_L_cache)", 4),
    (r".*(period|interval|_freq|_every_n.*)", 2),
    (r".*offset", 1),
    (r".*(hidden_size|d_model|n_embd|embed_dim|hidden_dim|embedding_size|emb_dim|model_dim|attention_dim).*", 32),
    (r"dim|d_embed|width|lru_width|.*_dim|.*_width", 32),
)
"""Pattern of a field's name -> its size. The first pattern that fits the whole name counts."""

_KV_HEADS = r".*(key_value|kv)_heads?|num_kv_heads|n_head_kv|multi_query_group_num"

_LIMITS: tuple[tuple[str, int], ...] = (
    (r".*(max_position|n_positions|max_seq|seq_len|n_ctx|max_source_pos|max_target_pos|context_length).*", 128),
    (r".*(window|chunk|block_size|block_length).*", 8),
)
"""Pattern of a field's name -> its largest value."""


_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
_MAMBA = {"mamba_d_head": 16, "mamba_n_heads": 4, "mamba_d_ssm": 64, "mamba_expand": 2}
FACTS: dict[str, dict[str, Any]] = {
    r"glm4v.*_text|glm4v_moe_text|glm_ocr_text|glm_image_text|qwen2(_5)?_vl_text|hunyuan_vl_text": _MROPE,
    r"bamba|falcon_h1|granitemoehybrid": _MAMBA,
    r"mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2},
    r"mobilebert": {"intra_bottleneck_size": 16, "true_hidden_size": 16, "embedding_size": 32},
    r"xmod": {"default_language": "en_XX"},
    r"esm": {"vocab_size": 100, "pad_token_id": 0, "mask_token_id": 3},
    r"deepseek_v2": {"topk_method": "greedy", "num_experts_per_tok": 2},
    r"squeezebert": {f"{part}_groups": 1 for part in ("q", "k", "v", "post_attention", "intermediate", "output")},
    r"reformer": {"axial_pos_embds": False, "attn_layers": ["local"] * LAYERS, "local_attn_chunk_length": 4},
    r"zamba2": {"mamba_headdim": 16, "n_mamba_heads": 4, "mamba_expand": 2},
    r"lilt": {"channel_shrink_ratio": 4},
    r"rwkv": {"attention_hidden_size": 32},
}
"""Pattern of a model type -> fields whose sizes must fit each other in a way that their names do not say."""


class NotBuiltError(Exception):
    """A model type that has no toy model; the message is the reason."""


def text_types() -> list[str]:
    """Return the model types that have a class for text: a language-model head, or a body that takes ``input_ids``."""
    known = {
        *auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
        *auto.MODEL_MAPPING_NAMES,
    }
    return sorted(known)


def toy_model(model_type: str, seed: int = SEED) -> nn.Module:
    """Return a random toy model of a type, in evaluation mode. Weights depend on the seed only.

    Raises:
        NotBuiltError: the type has no class that takes ``input_ids``, or no toy model could be built.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        config, kind = _config_and_class(model_type)
        torch.manual_seed(seed)
        try:
            if getattr(kind, "main_input_name", "input_ids") != "input_ids":
                raise NotBuiltError(f"it takes {kind.main_input_name}, no input_ids")
            model = kind(config).eval()
        except NotBuiltError:
            raise
        except Exception as error:  # of the model's code, which may raise anything
            raise NotBuiltError(_first_line(error)) from error
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter), alpha=NOISE)
    return model


def _config_and_class(model_type: str) -> tuple[Any, Any]:
    try:
        config = toy_config(CONFIG_MAPPING[model_type], _facts(model_type))
    except Exception as error:
        raise NotBuiltError(f"its configuration: {_first_line(error)}") from error
    for mapping in (
        auto.MODEL_FOR_MASKED_LM_MAPPING,
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        auto.MODEL_MAPPING,
    ):
        try:
            found = mapping.get(type(config), None)
        except Exception as error:  # a class that needs a package which is not installed
            raise NotBuiltError(_first_line(error)) from error
        if found is not None:
            kind = found[0] if isinstance(found, tuple | list) else found
            try:
                expected = getattr(kind, "config_class", None) or object
            except ImportError as error:  # a stand-in for a class that needs such a package
                raise NotBuiltError(_first_line(error)) from error
            return (config if isinstance(config, expected) else config.get_text_config(decoder=True)), kind
    raise NotBuiltError("it has no model class for text")


def toy_config(kind: Any, facts: Mapping[str, Any] | None = None) -> Any:
    """Return a configuration of a class with its sizes shrunk, and with some fields as given."""
    return kind(**_shrunk(kind()) | dict(facts or {}))


def _facts(model_type: str) -> dict[str, Any]:
    return next((fields for pattern, fields in FACTS.items() if re.fullmatch(pattern, model_type)), {})


def _shrunk(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    layers = max((v for k, v in vars(config).items() if _size(k) == LAYERS and isinstance(v, int)), default=0)
    for name, value in vars(config).items():
        if name.startswith("_") or isinstance(value, bool):
            continue
        if isinstance(value, transformers.PreTrainedConfig):
            values[name] = _shrunk(value)
        elif isinstance(value, int):
            size = _size(name)
            if size is not None:
                values[name] = size
            elif (limit := _limit(name)) is not None:
                values[name] = min(value, limit)
        elif isinstance(value, list) and layers and len(value) == layers and layers > LAYERS:
            values[name] = _varied(value)
        elif value is None and name in ("head_dim", "kv_channels"):
            values[name] = 8
        elif isinstance(value, dict) and "mrope_section" in value:
            values[name] = {**value, "mrope_section": [1, 1, 2]}
    heads = [v for k, v in vars(config).items() if k in ("num_attention_heads", "num_heads", "n_heads", "n_head")]
    for name, value in vars(config).items():
        if re.fullmatch(_KV_HEADS, name) and (value is None or isinstance(value, int)):
            values[name] = 4 if value in heads else 2
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if isinstance(getattr(config, name, None), int):
            values[name] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}[name]
    return values


def _varied(values: list[Any]) -> list[Any]:
    """Return ``LAYERS`` entries of a list, with as many kinds as fit, in their order."""
    firsts = [values.index(value) for value in {str(v): v for v in values}.values()][:LAYERS]
    others = [index for index in range(len(values)) if index not in firsts]
    return [values[index] for index in sorted([*firsts, *others[: LAYERS - len(firsts)]])]


@cache
def _size(name: str) -> int | None:
    return next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), None)


@cache
def _limit(name: str) -> int | None:
    return next((limit for pattern, limit in _LIMITS if re.fullmatch(pattern, name)), None)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]


def built(types: list[str] | None = None) -> Iterator[tuple[str, nn.Module | None, str]]:
    """Yield each type with its toy model, or with ``None`` and the reason."""
    for name in text_types() if types is None else types:
        try:
            yield name, toy_model(name), ""
        except NotBuiltError as reason:
            yield name, None, str(reason)
