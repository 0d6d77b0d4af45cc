"""Orders whose states overflow a 16-bit dtype: their rows are empty, a note says so, and the run continues."""

import json
import re

import pytest
import torch

import fastprobe as fp
from fastprobe.cli.output import show
from fastprobe.errors import NumericalError
from fastprobe.reordering.effects import compare
from fastprobe.reordering.table import orders_table
from fastprobe.testing.tiny_models import tiny_batches, tiny_model


@pytest.fixture(scope="module")
def nearly_overflowing():
    """Return a float16 model whose states overflow only if a layer runs twelve times."""
    model = tiny_model("llama", dtype=torch.float16)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data *= 2e4
    return model


@pytest.fixture(scope="module")
def effects(nearly_overflowing):
    orders = fp.orders.repeats(3, times=12)
    return fp.commutativity(nearly_overflowing, tiny_batches(), orders, depths=True, progress=False)


def test_the_row_of_an_overflowing_order_is_empty(effects):
    baseline, *others = effects.rows

    assert baseline["relative_l2"] == 0
    for row in others:
        empty = {key for key, value in row.items() if value is None}
        assert empty >= {"relative_l2", "cosine", "kl", "loss", "delta_loss", "accuracy", "top1_agreement"}


def test_such_a_result_is_saved_drawn_and_shown(effects, tmp_path, capsys):
    table = orders_table(effects.rows * 20)
    show(effects, table, provenance={}, out=tmp_path, metric="relative_l2_by_depth", json=False, quiet=False)

    saved = json.loads((tmp_path / "scores.json").read_text())["rows"]
    assert [row["relative_l2"] for row in saved] == [0, None, None, None]
    assert "3 rows are empty: their states became NaN or infinite; --dtype float32 may hold" in capsys.readouterr().err


def test_the_cosine_of_a_vector_with_nan_is_nan():
    tokens = torch.tensor([[torch.nan, 1.0], [1.0, 0.0], [0.0, 0.0]])

    cosine = compare(tokens, torch.ones(3, 2))["cosine"]

    assert cosine.isnan().tolist() == [True, False, False]
    assert cosine[2] == 0


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_a_baseline_that_is_not_finite_raises_an_error(family):
    model, batches = tiny_model(family), tiny_batches()
    batches[1]["input_ids"][batches[1]["input_ids"] == 50] = 51
    batches[0]["input_ids"][batches[0]["input_ids"] == 50] = 51
    batches[2]["input_ids"][0, 1] = 50
    model.get_input_embeddings().weight.data[50] = torch.nan

    message = re.escape("batch 2: a final state of the model in its own order is NaN, infinite or too large for")
    with pytest.raises(NumericalError, match=message):
        fp.commutativity(model, batches, fp.orders.swaps(3), progress=False)
