"""Labels of words become labels of tokens, as in token classification. A probe reads them."""

import json

import pytest
import torch
from transformers import AutoTokenizer

import fastprobe as fp
from fastprobe.data.demo import demo_model_path, demo_text
from fastprobe.errors import InputError

WORDS = " ".join(list(demo_text().values())[:3]).split()[:400]
ROWS = [
    {
        "tokens": WORDS[start : start + 9],
        "ids": list(range(start, start + 9)),
        "tags": ["long" if len(word) > 4 else "short" for word in WORDS[start : start + 9]],
    }
    for start in range(0, 396, 9)
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_model_path())


def labelled(tokenizer, rows=ROWS, labels=("ids",), **options):
    return fp.labelled_batches(rows, tokenizer, labels, **({"batch_size": 4} | options))


def sequences(batches, column):
    for batch in batches:
        for ids, labels, mask in zip(batch["input_ids"], batch[column], batch["attention_mask"].bool(), strict=True):
            yield ids[mask].tolist(), labels[mask].tolist()
            assert (labels[~mask] == -100).all()


def test_the_first_token_of_a_word_has_its_label(tokenizer):
    made = list(sequences(labelled(tokenizer), "ids"))

    assert len(made) == len(ROWS)
    for row, (ids, labels) in zip(ROWS, made, strict=True):
        encoded = tokenizer(row["tokens"], is_split_into_words=True)
        words = encoded.word_ids()
        first = [word is not None and word not in words[:at] for at, word in enumerate(words)]
        assert ids == encoded["input_ids"]
        assert labels == [row["ids"][word] if begins else -100 for word, begins in zip(words, first, strict=True)]
    assert sum(label >= 0 for _, labels in made for label in labels) == sum(len(row["ids"]) for row in ROWS)


def test_a_byte_level_token_may_begin_with_a_space(tokenizer):
    byte_level = fp.pretraining.corpus.train_tokenizer(list(demo_text().values())[:12], 400)

    for (ids, labels), row in zip(sequences(labelled(byte_level), "ids"), ROWS, strict=True):
        starts = [at for at, label in enumerate(labels) if label >= 0]
        assert [labels[at] for at in starts] == row["ids"]
        spelled = [
            byte_level.decode(ids[a:b], skip_special_tokens=True).strip()
            for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)
        ]
        assert spelled == [word.lower() for word in row["tokens"]]


def test_long_rows_are_cut_and_the_budget_is_exact(tokenizer):
    [(ids, labels)] = sequences(labelled(tokenizer, ROWS[:1]), "ids")

    parts = list(sequences(labelled(tokenizer, ROWS[:1], max_seq_len=7), "ids"))
    assert [token for part, _ in parts for token in part[1:-1]] == ids[1:-1]
    assert [label for _, part in parts for label in part[1:-1]] == labels[1:-1]
    assert max(len(part) for part, _ in parts) == 7

    few = list(sequences(labelled(tokenizer, tokens=50), "ids"))
    assert sum(len(part) for part, _ in few) == 50


def test_strings_become_classes_that_never_change(tokenizer):
    batches = labelled(tokenizer, labels=["tags", "ids"])

    first, second = list(batches), list(batches)

    assert sorted(batches.classes["tags"]) == ["long", "short"]
    assert all(torch.equal(a["tags"], b["tags"]) for a, b in zip(first, second, strict=True))
    number = batches.classes["tags"]
    row = [label for label in first[0]["tags"][0].tolist() if label >= 0]
    assert row == [number[tag] for tag in ROWS[0]["tags"]]


def test_a_probe_reads_labels_from_a_file(run, model_folder, tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    code, out, _ = run(
        "probe", model_folder, "--text", tmp_path / "rows.jsonl", "--labels", "tags", "--tasks", "token",
        "--score-sequences", "all", "--quiet", "--out", tmp_path / "out",
    )  # fmt: skip

    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["token", "tags"]
    [row] = [row for row in fp.load(tmp_path / "out").rows if row["task"] == "tags" and row["state"] == 0]
    assert (row["tokens"], row["classes"]) == (sum(len(row["ids"]) for row in ROWS), 2)
    tags = [tag for row in ROWS for tag in row["tags"]]
    assert row["majority"] == max(tags.count(tag) for tag in set(tags)) / len(tags)
    assert row["r2"] > 2 * 24 / len(tags)  # twice the r2 of random labels on 24 columns
    assert fp.load(tmp_path / "out").config["classes"] == {"tags": list(dict.fromkeys(tags))}


def test_a_dataset_of_token_classification_is_rows(tokenizer):
    datasets = pytest.importorskip("datasets")

    made = list(labelled(tokenizer, datasets.Dataset.from_list(ROWS), labels=["ids", "tags"]))

    assert all(torch.equal(a["ids"], b["ids"]) for a, b in zip(made, labelled(tokenizer), strict=True))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"tokens": ["a", "b"], "tags": [1]},
            "row 2: 2 words in 'tokens' and 1 labels in 'tags'; there must be one label a word",
        ),
        ({"tokens": ["a"], "ner": [1]}, r"row 2: no list of labels in column 'tags' \(it has tokens, ner\)"),
        (
            {"words": ["a"], "tags": [1]},
            r"row 2: no list of words in column 'tokens' \(it has words, tags\); name one with --words",
        ),
        ({"tokens": "a b", "tags": [1, 2]}, "row 2: no list of words in column 'tokens'"),
        (
            {"tokens": ["a"], "tags": [0.5]},
            "row 2: labels in 'tags' must all be integers or all be strings, got float, int",
        ),
        (
            {"tokens": ["a"], "tags": ["x"]},
            "row 2: labels in 'tags' must all be integers or all be strings, got int, str",
        ),
        (["a"], "row 2: must be a row of columns, got list"),
    ],
)
def test_an_unusable_row_is_named(tokenizer, row, message):
    rows = [{"tokens": ["fine"], "tags": [3]}, row]

    with pytest.raises(InputError, match=message) as caught:
        list(labelled(tokenizer, rows, labels=["tags"]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "tags"], "--labels: labels need rows of words"),
        (["--labels", "tags", "--text", "rows.txt"], "rows.txt: it has no rows; pass a .jsonl file"),
        (["--labels", "token"], "--labels: 'token' is a task that needs no labels"),
        (["--labels", "input_ids", "--text", "rows.txt"], "labels: 'input_ids' is an argument of the model"),
        (
            ["--labels", "tags", "--text", "rows.jsonl", "--words", "text"],
            "rows.jsonl, line 1: no list of words in column 'text'",
        ),
    ],
)
def test_unusable_label_options_get_one_line(run, model_folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("words\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")

    code, out, err = run("probe", model_folder, *arguments, "--quiet", "--out", tmp_path / "out")

    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
