"""Rows of results, and files of this version and of version 0.1.0."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.reordering.commutativity import CHANGES, OrderEffects

OLD = Path(__file__).parent / "version_0_1_0"
ROWS = [{"name": name, "order": order, "kl": kl} for name, order, kl in (("identity", "0,1", 0.0), ("", "1,0", None))]


def effects(rows, **config):
    return OrderEffects.restored({"layers": 2} | config, rows)


def test_top_sorts_the_rows_that_have_the_metric():
    result = effects([*ROWS, {"name": "", "order": "1", "kl": 0.5}])

    assert [row["kl"] for row in result.rows_with("kl")] == [0.0, 0.5]
    assert [row["kl"] for row in result.top(1, "kl")] == [0.5]


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


def old_rows(kind):
    return json.loads((OLD / kind / "scores.json").read_text())["rows"]


def test_orders_of_version_0_1_0_get_their_swaps_kept_and_dropped_layers(tmp_path):
    result = fp.load(OLD / "commutativity")

    new = [{key: row.pop(key) for key in CHANGES} for row in result.rows]
    assert result.rows == old_rows("commutativity")
    found = {row["name"]: tuple(change.values()) for row, change in zip(result.rows, new, strict=True)}
    assert found == {
        "identity": (None, None, 3, []),
        "swap ffn 0 1": (0, 1, None, []),
        "swap ffn 0 2": (0, 2, None, []),
        "swap ffn 1 2": (1, 2, None, []),
        "swap 0 1": (0, 1, 1, []),
        "swap 0 2": (0, 2, 1, []),
        "swap 1 2": (1, 2, 1, []),
        "attentions first": (None, None, None, []),
        "parallel 0-2": (None, None, None, []),
    }


def test_orders_of_version_0_1_0_are_drawn_and_have_a_matrix(tmp_path):
    result = fp.load(OLD / "commutativity")

    result.plot(tmp_path / "orders.png")

    matrix = result.matrix("kl")
    swaps = {row["name"]: row["kl"] for row in result.rows}
    assert matrix[0, 1] == matrix[1, 0] == swaps["swap 0 1"]
    assert np.isnan(matrix.diagonal()).all()


def test_an_order_whose_text_is_not_an_order_has_no_changes():
    row = effects([{"name": "", "order": "linear mlp.3", "kl": 1.0}]).rows[0]

    assert {key: row[key] for key in CHANGES} == dict.fromkeys(CHANGES)


def test_ablations_of_version_0_1_0_get_their_layers_as_data(tmp_path):
    result = fp.load(OLD / "ablation")

    layers = [row.pop("edited_layers") for row in result.rows]
    assert result.rows == old_rows("ablation")
    assert layers == [[], *[[0], [0, 1], [0, 1, 2]] * 4]
    fp.load(OLD / "ablation").plot(tmp_path / "ablation.png", "kl")


@pytest.mark.parametrize("kind", ["commutativity", "ablation"])
def test_a_file_of_this_version_is_not_changed_by_loading(kind, tmp_path):
    fp.load(OLD / kind).save(tmp_path)

    fp.load(tmp_path).save(tmp_path / "again")

    assert (tmp_path / "again" / "scores.json").read_text() == (tmp_path / "scores.json").read_text()
