"""Texts that a tokenizer does not know are refused."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from fastprobe.data.demo import demo_model_path
from fastprobe.data.labelled_batches import labelled_batches
from fastprobe.data.token_batches import token_batches
from fastprobe.data.unknown_tokens import ENOUGH, known_tokens
from fastprobe.errors import InputError

KNOWN, UNKNOWN = "the word ", "ꙮ "


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    assert tokenizer("ꙮ", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
    return tokenizer


@pytest.mark.parametrize("count", [3, 2 * ENOUGH])
def test_a_text_of_unknown_tokens_is_refused(tokenizer, count):
    with pytest.raises(InputError, match=r"tokenizer: [\d,]+ of the first [\d,]+ tokens of the text are its unknown"):
        list(token_batches(UNKNOWN * count, tokenizer))


def test_labelled_words_of_unknown_tokens_are_refused(tokenizer):
    with pytest.raises(InputError, match="tokenizer: 4 of the first 4 tokens"):
        list(labelled_batches([{"tokens": ["ꙮ"] * 4, "tags": [0] * 4}], tokenizer, ["tags"]))


def test_a_text_with_some_unknown_tokens_is_read(tokenizer):
    batches = list(token_batches([UNKNOWN * 20, KNOWN * 20], tokenizer, batch_size=1))

    assert sum(int((batch["input_ids"] == tokenizer.unk_token_id).sum()) for batch in batches) == 20


@pytest.mark.parametrize("end", ["bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"])
def test_a_tokenizer_whose_unknown_token_ends_a_text_is_never_refused(end):
    ids = {"unk_token_id": 7, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4}
    batch = {"input_ids": torch.full((2, 9), 7), "attention_mask": torch.ones(2, 9)}

    def read(ids):
        return list(known_tokens([batch], SimpleNamespace(**ids, unk_token="?", all_special_ids=[1, 2, 3, 4])))

    assert len(read(ids | {end: 7})) == len(read(ids | {"unk_token_id": None})) == 1
    with pytest.raises(InputError, match="18 of the first 18 tokens of the text are its unknown token '\\?'"):
        read(ids)
