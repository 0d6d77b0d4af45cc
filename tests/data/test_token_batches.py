"""Token batches lose nothing, add nothing and keep the budget."""

import pytest
import torch
from transformers import AutoTokenizer

from fastprobe.data.demo import demo_model_path
from fastprobe.data.documents import PIECE
from fastprobe.data.masked_batches import MaskedBatches
from fastprobe.data.token_batches import token_batches
from fastprobe.errors import InputError


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_model_path())


def bodies(batches, tokenizer):
    """Return all ids without padding and special tokens."""
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    return [int(i) for b in batches for i in b["input_ids"][b["attention_mask"].bool()] if int(i) not in special]


def test_each_token_of_the_text_occurs_once_and_in_order(tokenizer):
    text = "The quick brown fox jumps over the lazy dog. " * 40

    batches = list(token_batches(text, tokenizer, max_seq_len=16, batch_size=4))

    assert bodies(batches, tokenizer) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert all(b["input_ids"].shape[1] <= 16 for b in batches)
    assert all((b["input_ids"][:, 0] == tokenizer.cls_token_id).all() for b in batches)


def test_a_file_read_in_pieces_gives_the_tokens_of_the_whole(tokenizer, tmp_path):
    text = "".join(f"Line {n} of a file that is longer than one piece.\n" for n in range(3 * PIECE // 50))
    (tmp_path / "long.txt").write_text(text)

    batches = token_batches(tmp_path / "long.txt", tokenizer, tokens=10**9, max_seq_len=512)

    assert bodies(batches, tokenizer) == tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def test_the_budget_is_exact(tokenizer):
    text = "one two three four five six seven eight nine ten " * 30

    for tokens in (1, 2, 3, 40, 100):
        batches = list(token_batches(text, tokenizer, tokens=tokens, max_seq_len=12)) if tokens > 2 else []
        assert sum(int(b["attention_mask"].sum()) for b in batches) in (0, tokens, tokens - 1, tokens - 2)


def test_documents_do_not_share_a_sequence(tokenizer):
    (batch,) = token_batches(["one two", "three"], tokenizer, max_seq_len=16)

    assert batch["attention_mask"].sum(1).tolist() == [4, 3]


def test_batches_can_be_read_again(tokenizer):
    batches = token_batches(["a text", "another"], tokenizer)

    first, second = list(batches), list(batches)

    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, second, strict=True))


def test_rows_of_a_dataset_are_documents(tokenizer):
    (batch,) = token_batches([{"body": "one two"}, {"body": "three"}], tokenizer, text_column="body")

    assert len(batch["input_ids"]) == 2


@pytest.mark.parametrize("text", ["", " \n\t", [], [""]])
def test_a_text_without_tokens_is_an_error(tokenizer, text):
    with pytest.raises(InputError, match="no tokens"):
        list(token_batches(text, tokenizer))


def test_the_seed_of_masks_has_64_bits(tokenizer):
    with pytest.raises(InputError, match="seed: must be a number of 64 bits, got 9223372036854775808"):
        MaskedBatches(token_batches("Some text.", tokenizer), tokenizer, 2**63)


TEXTS = ["one two three four five six seven", "eight", "nine ten eleven"]


@pytest.mark.parametrize(("first", "special"), [(0, True), (1, False), (2, True), (5, False)])
def test_skipped_tokens_are_read_and_do_not_count(tokenizer, first, special):
    sizes = {"max_seq_len": 6, "batch_size": 2}
    plain = list(token_batches(TEXTS, tokenizer, **sizes))

    found = list(token_batches(TEXTS, tokenizer, skip_first=first, skip_special=special, **sizes))

    for batch, other in zip(found, plain, strict=True):
        assert batch.keys() == {"input_ids", "attention_mask", "token_mask"}
        for key, value in other.items():
            assert torch.equal(batch[key], value)
        for ids, mask, counts in zip(*(batch[key].tolist() for key in batch), strict=True):
            for place, (token, attended, counted) in enumerate(zip(ids, mask, counts, strict=True)):
                skipped = place < first or (special and token in tokenizer.all_special_ids)
                assert counted == (attended and not skipped)


def test_batches_know_which_of_their_tokens_count(tokenizer):
    def counted(**skips):
        return token_batches("a text", tokenizer, **skips).counted

    assert counted() is None
    assert counted(skip_first=2) == "skip_first=2"
    assert counted(skip_first=1, skip_special=True) == "skip_first=1, skip_special=True"
    assert MaskedBatches(token_batches("a text", tokenizer, skip_first=2), tokenizer, 0).counted == "skip_first=2"


@pytest.mark.parametrize("first", [-1, 8, 9])
def test_a_number_of_skipped_tokens_that_leaves_none_is_refused(tokenizer, first):
    with pytest.raises(InputError, match=f"skip_first: must be 0 to 7, less than max_seq_len, got {first}"):
        token_batches("a text", tokenizer, max_seq_len=8, skip_first=first)
