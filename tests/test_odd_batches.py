"""Unusual batches: those without tokens, and position ids with one row for all sequences."""

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.scan.merging import merge_scans
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

VERBS = {
    "linearity": lambda *args: fp.linearity(*args, progress=False),
    "commutativity": lambda *args: fp.commutativity(*args, fp.orders.swaps(3), progress=False),
    "commutator": lambda *args: fp.commutator(*args, progress=False),
    "ablation": lambda *args: fp.ablation(*args, mode=["resample", "linear"], progress=False),
    "probe": lambda *args: fp.probe(*args, progress=False),
}


def scores(verb, model, batches):
    rows = VERBS[verb](model, batches).rows
    return torch.tensor([value for row in rows for value in row.values() if isinstance(value, float)])


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("verb", VERBS)
def test_position_ids_may_have_one_row_for_all_sequences(verb, family):
    model, plain = tiny_model(family), tiny_batches()
    placed = [batch | {"position_ids": torch.arange(batch["input_ids"].shape[1])[None]} for batch in plain]

    torch.testing.assert_close(scores(verb, model, placed), scores(verb, model, plain), atol=1e-4, rtol=1e-3)


NOTHING = {
    "padding": {key: torch.zeros(3, 5, dtype=torch.long) for key in ("input_ids", "attention_mask")},
    "no sequence": {key: torch.zeros(0, 5, dtype=torch.long) for key in ("input_ids", "attention_mask")},
    "no column": {key: torch.zeros(3, 0, dtype=torch.long) for key in ("input_ids", "attention_mask")},
}
"""Batches without a token."""


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("verb", VERBS)
def test_batches_without_tokens_change_no_result_wherever_they_are(verb, family):
    model, plain = tiny_model(family), tiny_batches()
    first, middle, last = NOTHING.values()

    found = scores(verb, model, [first, last, plain[0], middle, first, *plain[1:], last, middle])

    torch.testing.assert_close(found, scores(verb, model, plain), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("verb", VERBS)
def test_batches_without_any_token_are_none(verb):
    with pytest.raises(InputError, match="batches: there are none"):
        VERBS[verb](tiny_model("bert"), [*NOTHING.values()])


@pytest.mark.parametrize("empty", [0, 1])
def test_a_shard_without_rows_changes_no_merged_scan(empty, tmp_path):
    scan = fp.linearity(tiny_model("bert"), tiny_batches(), progress=False)
    folders = [tmp_path / "0", tmp_path / "1"]
    for number, folder in enumerate(folders):
        moments = fp.Moments.zero(scan.moments.plan) if number == empty else scan.moments
        moments.save(folder / "moments.safetensors", scan.config)

    merged = merge_scans(folders, fp.LeastSquares())

    assert [row["r2_cv"] for row in merged.rows] == [row["r2_cv"] for row in scan.rows]
    assert merged.config["tokens"] == scan.config["tokens"]


@pytest.mark.parametrize("rows", [torch.zeros(0, 3), torch.zeros(0, 7, 3), torch.zeros(0, 3, dtype=torch.float64)])
def test_an_update_without_rows_changes_no_fit(rows):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    fit, empty = fp.LinearFit(3, 3).update(x, x.square()), fp.LinearFit(3, 3).update(rows, rows)
    expected = fit.scores()

    assert fp.LinearFit(3, 3).update(rows, rows).update(x, x.square()).scores() == expected
    assert fp.LinearFit(3, 3).merge_(empty).merge_(fit).scores() == expected
    assert fit.update(rows, rows).merge_(empty).scores() == expected
