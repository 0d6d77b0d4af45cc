"""``Source``: the model and the text that a user names."""

from pathlib import Path

import pytest

from fastprobe.cli.source import Source
from fastprobe.errors import InputError

SIZES = {"tokens": "600", "max_seq_len": 32}


@pytest.mark.parametrize(
    ("source", "argv"),
    [
        (Source(), "--tokens 100k --max-seq-len 128"),
        (Source(model="a/b", tokens="8k", dtype="bfloat16"), "a/b --tokens 8k --max-seq-len 128 --dtype bfloat16"),
        (
            Source(text=[Path("a.txt"), Path("b.jsonl")], text_column="body", batch_size="4"),
            "--text a.txt --text b.jsonl --text-column body --tokens 100k --max-seq-len 128 --batch-size 4",
        ),
        (Source(dataset="wikitext", split="test"), "--dataset wikitext --split test --tokens 100k --max-seq-len 128"),
        (Source(split="test"), "--tokens 100k --max-seq-len 128"),
        (Source(skip_first=2, skip_special=True), "--tokens 100k --max-seq-len 128 --skip-first 2 --skip-special"),
    ],
)
def test_argv_is_what_a_user_types(source, argv):
    assert source.argv == argv.split()


def test_batches_come_with_the_entries_of_a_configuration(model_folder):
    source = Source(model=str(model_folder), **SIZES)
    loaded, tokenizer = source.load_model()

    batches, provenance = source.load_batches(loaded, tokenizer)

    assert sum(int(batch["attention_mask"].sum()) for batch in batches) <= 600
    assert provenance == {
        "text": ["pydoc_data.topics"],
        "model": str(model_folder),
        "max_seq_len": 32,
        "batch_size": 128,
        "token_budget": 600,
        "model_dtype": "float32",
    }


def test_labels_need_a_text(model_folder):
    source = Source(model=str(model_folder), **SIZES)
    loaded, tokenizer = source.load_model()

    with pytest.raises(InputError, match=r"--labels: labels need rows of words, .*; name one with --text or --dataset"):
        source.load_batches(loaded, tokenizer, labels=["tags"])
