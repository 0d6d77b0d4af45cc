"""Documents of texts, files and tables, and one line for everything else."""

import json
import re
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pytest

from fastprobe.data import formats
from fastprobe.data.documents import documents, rows
from fastprobe.errors import InputError

TABLE = {"id": [1, 2], "text": ["one text", "another"]}
TEXTS = [["one text"], ["another"]]


def read(text, column="text"):
    return [list(pieces) for pieces in documents(text, column)]


@pytest.mark.parametrize(
    "text",
    [
        TABLE["text"],
        tuple(TABLE["text"]),
        np.array(TABLE["text"]),
        np.array(TABLE["text"], dtype=object),
        pandas.Series(TABLE["text"]),
        pandas.DataFrame(TABLE),
        pyarrow.table(TABLE),
        pyarrow.table(TABLE)["text"],
        pandas.DataFrame(TABLE).to_dict("records"),
        [pandas.DataFrame(TABLE)],
    ],
    ids=lambda text: type(text).__name__,
)
def test_a_text_of_any_container_is_its_strings(text):
    assert read(text) == TEXTS


@pytest.mark.parametrize("make", [pandas.DataFrame, pyarrow.table])
def test_a_table_is_read_by_its_column(make):
    table = make({"text": ["title"], "body": ["content"]})

    assert read(table, "body") == [["content"]]
    with pytest.raises(InputError, match=r"no text in column 'words' \(it has text, body\)"):
        read(table, "words")


@pytest.mark.parametrize(
    "text",
    [
        None,
        3,
        1.5,
        b"bytes",
        object(),
        [None],
        ["a text", None],
        ["a text", float("nan")],
        [3, 4],
        [b"bytes"],
        pandas.Series(["a text", None]),
        pandas.DataFrame({"text": ["a text", None]}),
        pyarrow.table({"text": ["a text", None]}),
        np.arange(3),
        {"text": ["a list", "of texts"]},
        {"body": "a text"},
        [{"text": None}],
    ],
    ids=repr,
)
def test_what_is_no_text_is_refused_in_one_line(text):
    with pytest.raises(InputError) as error:
        read(text)

    assert len(str(error.value).splitlines()) == 1


def test_the_name_of_a_file_is_not_a_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("a text")

    for text in ("corpus.txt", ["corpus.txt"], str(tmp_path / "corpus.txt")):
        with pytest.raises(InputError, match=r"is the name of a file; pass Path\('"):
            read(text)
    assert read(Path("corpus.txt")) == [["a text"]]
    assert read("other.txt") == [["other.txt"]]


SUFFIXES = sorted(formats.TABLES | formats.MARKUP | formats.PACKED | formats.BINARY)


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JSON", ".Csv"])
def test_a_file_of_another_format_is_refused_with_a_remedy(suffix, tmp_path):
    path = tmp_path / f"data{suffix}"
    path.write_text('{"text": "a text"}\n')

    with pytest.raises(InputError, match=rf"a {re.escape(suffix.lower())} file is not plain text; \w+") as error:
        read(path)

    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["data.jsonl", "data.JSONL", "data.ndjson"])
def test_rows_are_read_from_every_spelling_of_their_format(name, tmp_path):
    path = tmp_path / name
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TABLE["text"]))

    assert read(path) == TEXTS
    assert [row for row, _ in rows(path)] == [{"text": text} for text in TABLE["text"]]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (r'{"text": "half \ud83d of it"}', r"line 2: character 5 is the lone surrogate '\\ud83d'"),
        ('{"text": ' + "[" * 100_000, "line 2: not JSON"),
        ('{"text": ' + "9" * 5000 + "}", "line 2: not JSON"),
        ("{", "line 2: not JSON"),
        ("3", "line 2: no text in column 'text'"),
        ('{"text": "\0"}', "line 2: a zero byte"),
    ],
    ids=["surrogate", "deep", "long number", "cut", "number", "zero"],
)
def test_a_line_that_cannot_be_read_is_named(line, reason, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"text": "good"}}\n{line}\n')

    with pytest.raises(InputError, match=reason) as error:
        read(path)

    assert len(str(error.value).splitlines()) == 1


def test_a_lone_surrogate_in_a_text_is_refused():
    with pytest.raises(InputError, match=r"text: character 1 is the lone surrogate '\\udc80'"):
        read(["good", "b\udc80"])


def test_a_data_frame_has_rows():
    frame = pandas.DataFrame({"words": [["a", "b"]], "tags": [[0, 1]]})

    assert [row for row, _ in rows(frame)] == [row for row, _ in rows(pyarrow.table(frame))]
    assert next(row for row, _ in rows(frame))["words"] == ["a", "b"]
