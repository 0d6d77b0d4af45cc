"""Text for training: nothing lost, nothing seen that is held out, the same in every process."""

import math
import subprocess
import sys
from collections import Counter

import pytest
import torch
from transformers import AutoTokenizer

from fastprobe.data.demo import demo_text
from fastprobe.errors import InputError
from fastprobe.pretraining.corpus import Corpus, documentation, hide, train_tokenizer

TEXT = list(demo_text().values())[:12]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXT, 400)


def corpus(text, tokenizer, max_seq_len=16, tokens=None, seed=0):
    return Corpus.of(text, tokenizer, max_seq_len=max_seq_len, tokens=tokens, text_column="text", seed=seed)


def test_the_tokenizer_loads_as_any_other_and_loses_nothing_but_case_and_layout(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)

    assert len(loaded) == 400
    assert loaded("Two\n  words, 3 £")["input_ids"] == tokenizer("two words, 3 £")["input_ids"]
    assert loaded.decode(loaded("Two\n  words, 3 £")["input_ids"], skip_special_tokens=True).strip() == "two words, 3 £"
    assert loaded("a").input_ids[0] == loaded.cls_token_id
    assert loaded.mask_token_id is not None


def test_the_tokenizer_is_the_same_in_every_process(tokenizer):
    code = (
        "from fastprobe.pretraining.corpus import train_tokenizer; from fastprobe.data.demo import demo_text; "
        "print(sorted(train_tokenizer(list(demo_text().values())[:12], 400).get_vocab().items()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == str(sorted(tokenizer.get_vocab().items()))


def test_every_token_is_in_training_or_held_out_in_order(tokenizer):
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


def test_fifteen_percent_are_hidden_and_none_of_them_is_special(tokenizer):
    ids = corpus(TEXT, tokenizer, max_seq_len=64).train[:100].long()
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))

    hidden, labels = hide(ids, tokenizer, seed=0)
    masked, labels_masked = hide(ids, tokenizer, seed=0, mask_only=True)

    at = labels != -100
    assert not (at & special).any()
    assert torch.equal(labels[at], ids[at])
    assert torch.equal(hidden[~at], ids[~at])
    n = int((~special).sum())
    assert at.sum() == pytest.approx(0.15 * n, abs=4 * math.sqrt(0.15 * 0.85 * n))
    share = float((hidden[at] == tokenizer.mask_token_id).double().mean())
    assert share == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / int(at.sum())))
    assert (masked[labels_masked != -100] == tokenizer.mask_token_id).all()


def test_what_is_hidden_follows_from_the_tokens_and_the_seed(tokenizer):
    ids = corpus(TEXT, tokenizer).train[:8].long()
    first = hide(ids, tokenizer, seed=0)
    torch.rand(3)

    assert all(torch.equal(a, b) for a, b in zip(first, hide(ids, tokenizer, seed=0), strict=True))
    assert not torch.equal(first[1], hide(ids, tokenizer, seed=1)[1])
    assert not torch.equal(first[1] != -100, hide(ids.flip(0), tokenizer, seed=0)[1] != -100)


def test_the_unigram_loss_is_that_of_counted_frequencies(tokenizer):
    made = corpus(TEXT, tokenizer)

    counts = Counter(i for i in made.train.flatten().tolist() if i not in tokenizer.all_special_ids)
    total = sum(counts.values()) + len(tokenizer)
    targets = made.labels[made.labels != -100].tolist()
    expected = -sum(math.log((counts[t] + 1) / total) for t in targets) / len(targets)
    assert made.unigram_loss() == pytest.approx(expected, abs=1e-12)


def test_no_more_than_the_budget_is_read_and_no_more_than_512_sequences_are_held_out(tokenizer):
    assert corpus(TEXT, tokenizer, tokens=14 * 40).train.shape == (38, 16)
    many = corpus(TEXT * 3, tokenizer, max_seq_len=5)
    assert len(many.train) > 20 * 512
    assert 400 < len(many.held_out) <= 512


@pytest.mark.parametrize(
    ("text", "length", "message"), [(["too short"], 16, "20 are the least"), (TEXT, 2, "leaves no room")]
)
def test_text_that_gives_no_sequences_is_refused(tokenizer, text, length, message):
    with pytest.raises(InputError, match=message):
        corpus(text, tokenizer, max_seq_len=length)


@pytest.mark.slow
def test_megabytes_of_english_are_on_every_machine():
    text = list(documentation())

    assert sum(map(len, text)) > 4e6
    assert not any(">>>" in document for document in text[len(demo_text()) :])
