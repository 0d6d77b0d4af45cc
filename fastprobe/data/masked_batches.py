"""Batches with hidden tokens, for an encoder to predict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastprobe.data.token_batches import TokenBatches
from fastprobe.errors import InputError


class MaskedBatches:
    """Batches in which the mask token replaces 15 % of the tokens. Special tokens are never replaced.

    Args:
        batches: the batches to hide tokens in.
        tokenizer: a Hugging Face tokenizer with a mask token.
        seed: chooses the hidden tokens; the same in every pass.

    Yields:
        the dicts of ``batches`` with ``labels``, ``(batch, length)`` int64: the hidden token, -100 elsewhere.

    Raises:
        InputError: the tokenizer has no mask token, or the seed has more than 64 bits.
    """

    def __init__(self, batches: TokenBatches, tokenizer: Any, seed: int):
        if tokenizer.mask_token_id is None:
            raise InputError("tokenizer: must have a mask token to hide tokens with, got one without")
        if not -(2**63) <= seed < 2**63:
            raise InputError(f"seed: must be a number of 64 bits, got {seed}")
        self.batches, self.tokenizer, self.seed = batches, tokenizer, seed
        self.tokens, self.counted = batches.tokens, batches.counted

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        from transformers import DataCollatorForLanguageModeling  # here, because its import takes a second

        collator = DataCollatorForLanguageModeling(self.tokenizer, mask_replace_prob=1.0, random_replace_prob=0.0)
        collator.generator = torch.Generator().manual_seed(self.seed)
        for batch in self.batches:
            special = torch.isin(batch["input_ids"], torch.tensor(self.tokenizer.all_special_ids))
            special |= ~batch["attention_mask"].bool()
            hidden, labels = collator.torch_mask_tokens(batch["input_ids"].clone(), special)
            yield batch | {"input_ids": hidden, "labels": labels}
