"""Rows of results, and files of this version and of version 0.1.0."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import fastprobe as fp
from fastprobe.ablations.ablation import Ablations
from fastprobe.errors import InputError
from fastprobe.reordering.commutativity import OrderEffects
from fastprobe.reordering.rows import CHANGES

SAVED = Path(__file__).parents[1] / "saved" / "0.1.0"
ROWS = [{"name": name, "order": order, "kl": kl} for name, order, kl in (("identity", "0,1", 0.0), ("", "1,0", None))]


def effects(rows, **config):
    return OrderEffects.restored({"layers": 2} | config, rows)


def test_top_sorts_the_rows_that_have_the_metric():
    result = effects([*ROWS, {"name": "", "order": "1", "kl": 0.5}])

    assert [row["kl"] for row in result.rows_with("kl")] == [0.0, 0.5]
    assert [row["kl"] for row in result.top(1, "kl")] == [0.5]


def test_top_returns_the_smallest_numbers_first_if_ascending():
    rows = [{"name": "", "order": str(number), "kl": kl} for number, kl in enumerate((0.5, None, 0.25, 1.0, 0.25))]

    smallest = effects(rows).top(3, "kl", ascending=True)

    assert [(row["order"], row["kl"]) for row in smallest] == [("2", 0.25), ("4", 0.25), ("0", 0.5)]


@pytest.mark.parametrize("call", [lambda result: result.rows_with("loss"), lambda result: result.top(1, "loss")])
def test_a_metric_without_numbers_is_refused_and_the_others_are_named(call):
    with pytest.raises(InputError, match="metric: no row has 'loss'; the rows have i, j, kept, kl"):
        call(effects(ROWS))


def test_top_needs_a_positive_count():
    with pytest.raises(InputError, match="k: must be 1 or more, got 0"):
        effects(ROWS).top(0, "kl")


@pytest.mark.parametrize(
    ("config", "title"),
    [
        ({}, ""),
        ({"model": "a/b/"}, ""),
        ({"model": "a/b/", "tokens": 2000}, "b  ·  2,000 tokens"),
        (
            {"model": "b", "tokens": 20, "skip_scale": 0.5, "skip_parts": "ffn"},
            "b  ·  20 tokens  ·  skips 0.5 (ffn)",
        ),
    ],
)
def test_the_title_has_model_tokens_and_skips(config, title):
    assert effects(ROWS, **config).title == title


def test_a_saved_result_is_loaded_as_it_was(tmp_path):
    result = effects(ROWS, tokens=20)
    result.save(tmp_path)

    assert fp.load(tmp_path) == result
    with (tmp_path / "scores.csv").open() as file:
        assert [*csv.DictReader(file)][1] == {
            "name": "",
            "order": "1,0",
            "kl": "",
            **{"i": "0", "j": "1", "kept": "0", "dropped": "[]"},
        }


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "no such", "config": {}, "rows": []}', '{"kind": "ablation"}'])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)

    with pytest.raises(InputError, match=r"scores.json: not a result of fastprobe"):
        fp.load(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no scores.json in it; name a folder that a command wrote with --out"):
        fp.load(tmp_path)


def saved_rows(name):
    return json.loads((SAVED / name / "scores.json").read_text())["rows"]


def test_orders_of_version_0_1_0_get_their_swaps_kept_and_dropped_layers():
    result = fp.load(SAVED / "orders")

    changes = [tuple(row.pop(key) for key in CHANGES) for row in result.rows]
    assert result.rows == saved_rows("orders")
    swaps = [(0, 1, 1, []), (0, 2, 1, []), (1, 2, 1, [])]
    drops = [(None, None, None, [layer]) for layer in range(3)]
    assert changes == [(None, None, 3, []), *swaps, *drops]


def test_orders_of_version_0_1_0_have_a_matrix():
    matrix = fp.load(SAVED / "orders").matrix("cosine")

    cosine = {row["name"]: row["cosine"] for row in saved_rows("orders")}
    assert matrix[0, 1] == matrix[1, 0] == cosine["swap 0 1"]
    assert matrix[1, 2] == cosine["swap 1 2"]
    assert np.isnan(matrix.diagonal()).all()


@pytest.mark.parametrize(
    ("order", "changes"),
    [
        ("attention.0,ffn.1,attention.1,ffn.0", (0, 1, None, [])),
        ("(0+1)", (None, None, None, [])),
        ("1,1", (None, None, None, [0])),
        ("linear mlp.3", (None, None, None, None)),  # an edited layer, whose text is not an order
    ],
)
def test_the_changes_of_an_old_row_follow_from_its_order(order, changes):
    row = effects([{"name": "", "order": order, "kl": 1.0}]).rows[0]

    assert tuple(row[key] for key in CHANGES) == changes


def test_ablations_of_version_0_1_0_get_their_layers_as_data():
    result = fp.load(SAVED / "ablation")

    layers = [row.pop("edited_layers") for row in result.rows]
    assert result.rows == saved_rows("ablation")
    assert layers == [[], *[[0], [1], [2]] * 4]


def test_layers_of_old_ablations_may_be_ranges():
    rows = [{"element": "mlp", "layers": layers, "mode": "zero", "kl": 1.0} for layers in ("0-3", "1,4-6,8")]

    assert [row["edited_layers"] for row in Ablations.restored({}, rows).rows] == [[0, 1, 2], [1, 4, 5, 8]]


@pytest.mark.parametrize("name", ["orders", "ablation"])
def test_a_file_of_this_version_is_not_changed_by_loading(name, tmp_path):
    fp.load(SAVED / name).save(tmp_path)

    fp.load(tmp_path).save(tmp_path / "again")

    assert (tmp_path / "again" / "scores.json").read_text() == (tmp_path / "scores.json").read_text()
