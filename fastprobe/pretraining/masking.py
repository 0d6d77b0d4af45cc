"""Masking of tokens for masked language modelling."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor


def mask_tokens(ids: Tensor, tokenizer: Any, seed: int, *, mask_only: bool = False) -> tuple[Tensor, Tensor]:
    """Mask 15 % of the tokens with Transformers' collator. Special tokens are never masked.

    The choice depends only on ``ids`` and ``seed``, not on earlier random draws. So a resumed run masks the same tokens
    as an uninterrupted one.

    Args:
        ids: ``(batch, length)`` int64.
        tokenizer: a tokenizer with a mask token.
        seed: seed of the choice.
        mask_only: replace every chosen token by the mask token. Otherwise, as in BERT, 80 % are replaced by the mask
            token and 10 % by a random token, and 10 % stay.

    Returns:
        the ids after masking, and the labels: the original id of each chosen token, -100 elsewhere. Each is
        ``(batch, length)`` int64.
    """
    from transformers import DataCollatorForLanguageModeling  # here, because this import takes a second

    shares: dict[str, Any] = {"mask_replace_prob": 1.0, "random_replace_prob": 0.0} if mask_only else {}
    collator = DataCollatorForLanguageModeling(tokenizer, **shares)
    collator.generator = torch.Generator().manual_seed(zlib.crc32(ids.numpy().tobytes(), seed))
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    return collator.torch_mask_tokens(ids.clone(), special)
