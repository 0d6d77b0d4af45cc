"""Unusual batches: one of padding only, and position ids with one row for all sequences."""

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError
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


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("verb", ["commutativity", "commutator", "probe"])
def test_a_batch_of_padding_changes_no_result_but_must_not_be_first(verb, family):
    model, plain = tiny_model(family), tiny_batches()
    nothing = {key: torch.zeros(3, 5, dtype=torch.long) for key in plain[0]}

    if verb != "probe":  # probe assigns folds by sequence number, so an extra batch changes them
        names = ("relative_l2", "cosine")
        with_it, without = (VERBS[verb](model, b).rows for b in ([*plain, nothing], plain))
        assert [[row[name] for name in names] for row in with_it] == [[row[name] for name in names] for row in without]
    with pytest.raises(InputError, match="batches: the first one has padding only"):
        VERBS[verb](model, [nothing, *plain])
