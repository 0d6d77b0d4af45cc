"""Tiny random models of every supported family, and batches for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

VOCABULARY = 100
_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 8}


def _build(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**options))


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "bert": _build("BertModel", "BertConfig", **_SMALL),
    "bert-mlm": _build("BertForMaskedLM", "BertConfig", **_SMALL),
    "roberta": _build("RobertaModel", "RobertaConfig", **_SMALL),
    "electra": _build("ElectraModel", "ElectraConfig", **_SMALL, embedding_size=16),
    "gpt2": _build(
        "GPT2LMHeadModel",
        "GPT2Config",
        n_embd=32,
        n_layer=3,
        n_head=4,
        vocab_size=VOCABULARY,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "llama": _build("LlamaForCausalLM", "LlamaConfig", **_SMALL, num_key_value_heads=2),
    "mistral": _build("MistralForCausalLM", "MistralConfig", **_SMALL, num_key_value_heads=2, sliding_window=4),
    "qwen3": _build("Qwen3ForCausalLM", "Qwen3Config", **_SMALL, **_GROUPED),
    "gemma2": _build("Gemma2ForCausalLM", "Gemma2Config", **_SMALL, **_GROUPED),
    "gemma3": _build("Gemma3ForCausalLM", "Gemma3TextConfig", **_SMALL, **_GROUPED),
    "neox": _build("GPTNeoXForCausalLM", "GPTNeoXConfig", **_SMALL),
    "modernbert": _build("ModernBertModel", "ModernBertConfig", **_SMALL, cls_token_id=1, sep_token_id=2),
}
"""Family -> constructor of a random model with 3 layers of width 32. Seed torch for reproducible weights."""


def tiny_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a random model of a family in evaluation mode.

    Noise of standard deviation 0.1 is added to the initial weights, so that no part of the model is nearly linear.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[family]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.to(dtype)


def tiny_batches(
    sequences: int = 18, length: int = 14, batch_size: int = 6, seed: int = 0, shortest: int = 5
) -> list[dict[str, Tensor]]:
    """Return padded batches of random token ids, in sequences of ``shortest`` to ``length`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (sequences, length), generator=generator)
    lengths = torch.randint(shortest, length + 1, (sequences, 1), generator=generator)
    mask = (torch.arange(length) < lengths).long()
    ids = ids * mask
    return [
        {"input_ids": ids[i : i + batch_size], "attention_mask": mask[i : i + batch_size]}
        for i in range(0, sequences, batch_size)
    ]
