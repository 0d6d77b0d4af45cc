"""The corpus: every token is in the training or the held-out part, and masking is reproducible."""

import math
import subprocess
import sys
from collections import Counter

import pytest
import torch
from transformers import AutoTokenizer

import fastprobe as fp
from fastprobe.data.demo import demo_model_path, demo_text
from fastprobe.errors import InputError
from fastprobe.pretraining.corpus import Corpus
from fastprobe.pretraining.documentation import documentation
from fastprobe.pretraining.masking import mask_tokens
from fastprobe.pretraining.tokenizer import train_tokenizer

TEXT = list(demo_text().values())[:12]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXT, 400)


def corpus(text, tokenizer, max_seq_len=16, tokens=None, seed=0):
    return Corpus.of(text, tokenizer, max_seq_len=max_seq_len, tokens=tokens, text_column="text", seed=seed)


def test_the_tokenizer_loads_and_loses_only_case_and_white_space(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)

    assert len(loaded) == 400
    assert loaded("Two\n  words, 3 £")["input_ids"] == tokenizer("two words, 3 £")["input_ids"]
    assert loaded.decode(loaded("Two\n  words, 3 £")["input_ids"], skip_special_tokens=True).strip() == "two words, 3 £"
    assert loaded("a").input_ids[0] == loaded.cls_token_id
    assert loaded.mask_token_id is not None


def test_the_tokenizer_is_the_same_in_another_process(tokenizer):
    code = (
        "from fastprobe.pretraining.corpus import train_tokenizer; from fastprobe.data.demo import demo_text; "
        "print(sorted(train_tokenizer(list(demo_text().values())[:12], 400).get_vocab().items()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == str(sorted(tokenizer.get_vocab().items()))


def test_every_token_is_in_the_training_or_the_held_out_sequences_in_order(tokenizer):
    made = corpus(TEXT, tokenizer)

    held_out = torch.where(made.labels == -100, made.held_out, made.labels)
    whole = torch.cat([made.train.long(), held_out])
    every = torch.arange(len(whole)) % 20 == 19
    whole[~every], whole[every] = made.train.long(), held_out
    sep = tokenizer.sep_token_id
    stream = [i for text in TEXT for i in [*tokenizer(text, add_special_tokens=False)["input_ids"], sep]]
    assert whole[:, 1:-1].flatten().tolist() == stream[: whole[:, 1:-1].numel()]
    assert len(stream) - whole[:, 1:-1].numel() < 14
    assert (whole[:, 0] == tokenizer.cls_token_id).all()
    assert (whole[:, -1] == sep).all()


def test_fifteen_percent_of_the_tokens_are_masked_and_none_is_special(tokenizer):
    ids = corpus(TEXT, tokenizer, max_seq_len=64).train[:100].long()
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))

    replaced, labels = mask_tokens(ids, tokenizer, seed=0)
    masked, labels_masked = mask_tokens(ids, tokenizer, seed=0, mask_only=True)

    at = labels != -100
    assert not (at & special).any()
    assert torch.equal(labels[at], ids[at])
    assert torch.equal(replaced[~at], ids[~at])
    n = int((~special).sum())
    assert at.sum() == pytest.approx(0.15 * n, abs=4 * math.sqrt(0.15 * 0.85 * n))
    share = float((replaced[at] == tokenizer.mask_token_id).double().mean())
    assert share == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / int(at.sum())))
    assert (masked[labels_masked != -100] == tokenizer.mask_token_id).all()


def test_masking_depends_only_on_the_tokens_and_the_seed(tokenizer):
    ids = corpus(TEXT, tokenizer).train[:8].long()
    first = mask_tokens(ids, tokenizer, seed=0)
    torch.rand(3)

    assert all(torch.equal(a, b) for a, b in zip(first, mask_tokens(ids, tokenizer, seed=0), strict=True))
    assert not torch.equal(first[1], mask_tokens(ids, tokenizer, seed=1)[1])
    assert not torch.equal(first[1] != -100, mask_tokens(ids.flip(0), tokenizer, seed=0)[1] != -100)


def test_the_unigram_loss_agrees_with_counted_frequencies(tokenizer):
    made = corpus(TEXT, tokenizer)

    counts = Counter(i for i in made.train.flatten().tolist() if i not in tokenizer.all_special_ids)
    total = sum(counts.values()) + len(tokenizer)
    targets = made.labels[made.labels != -100].tolist()
    expected = -sum(math.log((counts[t] + 1) / total) for t in targets) / len(targets)
    assert made.unigram_loss() == pytest.approx(expected, abs=1e-12)


def test_the_token_budget_and_the_limit_of_512_held_out_sequences_hold(tokenizer):
    assert corpus(TEXT, tokenizer, tokens=14 * 40).train.shape == (38, 16)
    many = corpus(TEXT * 3, tokenizer, max_seq_len=5)
    assert len(many.train) > 20 * 512
    assert 400 < len(many.held_out) <= 512


@pytest.mark.parametrize(
    ("text", "length", "message"), [(["too short"], 16, "20 are needed"), (TEXT, 2, "leaves no room")]
)
def test_text_without_enough_sequences_raises_an_error(tokenizer, text, length, message):
    with pytest.raises(InputError, match=message):
        corpus(text, tokenizer, max_seq_len=length)


@pytest.mark.slow
def test_the_documentation_is_megabytes_of_text_without_examples():
    text = list(documentation())

    assert sum(map(len, text)) > 4e6
    assert not any(">>>" in document for document in text[len(demo_text()) :])


def test_a_text_that_the_tokenizer_does_not_know_is_refused(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())

    with pytest.raises(InputError, match="tokenizer: 500 of the first 501 tokens of the text are its unknown token"):
        corpus("ꙮ " * 500 + "known", tokenizer)
    with pytest.raises(InputError, match="of the text are its unknown token"):
        fp.pretrain("ꙮ " * 500, tmp_path, tokenizer=tokenizer, steps=1, progress=False)
    assert len(corpus(["ꙮ " * 300, "known words " * 300], tokenizer).train)
