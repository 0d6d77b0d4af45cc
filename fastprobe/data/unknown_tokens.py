"""Refusal of a text whose words the tokenizer does not know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastprobe.errors import InputError

MOST = 0.5
"""Largest share of the unknown token among the tokens of a text."""

ENOUGH = 1000
"""Tokens from which on the share is judged before the text has ended."""


def known_tokens(batches: Iterable[dict[str, Tensor]], tokenizer: Any) -> Iterator[dict[str, Tensor]]:
    """Yield batches as long as the tokenizer knows at least half of their tokens.

    Special tokens and padding do not count. A tokenizer without an unknown token knows every text.

    Raises:
        InputError: more than half of the tokens so far are the unknown token.
    """
    unknown = tokenizer.unk_token_id
    special = torch.tensor([index for index in tokenizer.all_special_ids if index != unknown])
    # Some tokenizers use one token as the unknown one and at the ends of a text.
    ends = () if unknown is None else (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id)
    if unknown is None or unknown in (*ends, tokenizer.sep_token_id):
        yield from batches
        return
    tokens = found = 0

    def check() -> None:
        if found > MOST * tokens:
            raise InputError(
                f"tokenizer: {found:,} of the first {tokens:,} tokens of the text are its unknown token "
                f"{tokenizer.unk_token!r}; use the tokenizer of the model, and a text in a language that it knows"
            )

    for batch in batches:
        ids = batch["input_ids"][batch["attention_mask"].bool()]
        tokens += int((~torch.isin(ids, special)).sum())
        found += int((ids == unknown).sum())
        if tokens >= ENOUGH:
            check()
        yield batch
    check()
