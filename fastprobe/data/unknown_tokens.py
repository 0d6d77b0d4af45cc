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
    count = UnknownTokens(tokenizer)
    for batch in batches:
        count.add(batch["input_ids"][batch["attention_mask"].bool()])
        if count.tokens >= ENOUGH:
            count.check()
        yield batch
    count.check()


class UnknownTokens:
    """Count of the tokens of a text, and of those that the tokenizer does not know.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any):
        self._text, self._id = tokenizer.unk_token, tokenizer.unk_token_id
        self._special = torch.tensor([index for index in tokenizer.all_special_ids if index != self._id])
        # Some tokenizers use one token as the unknown one and at the ends of a text.
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
        self._knows_all = self._id is None or self._id in ends
        self.tokens = self.unknown = 0

    def add(self, ids: Tensor) -> None:
        """Count token ids of any shape."""
        if not self._knows_all:
            self.tokens += int((~torch.isin(ids, self._special)).sum())
            self.unknown += int((ids == self._id).sum())

    def check(self) -> None:
        """Raise an error if more than half of the tokens are the unknown token.

        Raises:
            InputError: they are.
        """
        if self.unknown > MOST * self.tokens:
            raise InputError(
                f"tokenizer: {self.unknown:,} of the first {self.tokens:,} tokens of the text are its unknown token "
                f"{self._text!r}; use the tokenizer of the model, and a text in a language that it knows"
            )
