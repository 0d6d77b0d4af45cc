"""Commutators, compared with models that run only the earlier layers and the pair."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fastprobe as fp
from fastprobe import orders
from fastprobe.errors import InputError
from fastprobe.orders.plan import OrderPlan
from fastprobe.regression.least_squares import Factorisation
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model
from tests.reordering.test_commutativity import final, moved


@pytest.mark.parametrize("state", ["own", 0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_those_of_models_that_run_two_layers(family, state):
    model, batches = tiny_model(family), tiny_batches(sequences=8, batch_size=4)

    result = fp.commutator(model, batches, state=state, progress=False)

    assert [(row["i"], row["j"]) for row in result.rows] == [(0, 1), (0, 2), (1, 2)]
    for row in result.rows:
        i, j = row["i"], row["j"]
        before = list(range(i if state == "own" else state))
        one, other = moved(model, [*before, i, j]), moved(model, [*before, j, i])
        error = norm = cosine = tokens = 0.0
        for batch in batches:
            mask = batch["attention_mask"].bool()
            a, b = final(one, batch)[0][mask], final(other, batch)[0][mask]
            error, norm = error + float((a - b).square().sum()), norm + float(a.square().sum())
            cosine, tokens = cosine + float(F.cosine_similarity(a, b).sum()), tokens + len(a)
        assert row["relative_l2"] == pytest.approx((error / norm) ** 0.5, abs=1e-5)
        assert row["cosine"] == pytest.approx(cosine / tokens, abs=1e-5)


@pytest.mark.parametrize(("depth", "runs"), [(3, 9), (12, 144)])
def test_one_state_for_all_pairs_runs_the_square_of_the_layers(depth, runs):
    pairs = itertools.permutations(range(depth), 2)

    assert OrderPlan.of(pairs).applications == runs


def test_a_layer_commutes_with_its_copy():
    model = tiny_model("bert")
    model.encoder.layer[1].load_state_dict(model.encoder.layer[0].state_dict())

    rows = fp.commutator(model, tiny_batches(), progress=False).rows

    assert rows[0]["relative_l2"] == pytest.approx(0, abs=1e-6)
    assert rows[1]["relative_l2"] > 0.01


@pytest.mark.parametrize("state", ["mine", -1, 4])
def test_an_unknown_state_is_refused(state):
    with pytest.raises(InputError, match="state: must be 'own' or the input of a layer, 0 to 3"):
        fp.commutator(tiny_model("bert"), tiny_batches(), state=state, progress=False)


def test_an_empty_stream_is_refused():
    with pytest.raises(InputError, match="batches: there are none"):
        fp.commutator(tiny_model("bert"), [], progress=False)


def test_linear_commutators_compare_products_of_maps():
    scan = fp.linearity(tiny_model("gpt2"), tiny_batches(sequences=60), elements=["layer"], progress=False)

    result = fp.linear_commutator(scan)
    with pytest.warns(DeprecationWarning, match="linear_commutator: the argument fit is now method"):
        assert fp.linear_commutator(scan, fit=fp.LeastSquares()) == result

    layers = [Factorisation.of(scan.moments, x, fp.LeastSquares()).fit(y) for *_, x, y, _ in scan.config["fits"]]
    a, b = layers[0].coef.mT, layers[2].coef.mT
    assert result.matrix()[0, 2] == pytest.approx(float((b @ a - a @ b).norm() / (b @ a).norm()))
    with pytest.raises(InputError, match='needs a scan of element "layer"'):
        fp.linear_commutator(fp.linearity(tiny_model("gpt2"), tiny_batches(), elements=["ffn"], progress=False))


def test_results_are_saved_loaded_and_drawn(tmp_path):
    result = fp.commutator(tiny_model("bert"), tiny_batches(), progress=False)
    result.save(tmp_path)

    loaded = fp.load(tmp_path)
    loaded.plot(tmp_path / "pairs.png")

    assert loaded == result
    assert np.isnan(loaded.matrix("cosine").diagonal()).all()
    assert (tmp_path / "pairs.png").exists()


def test_a_swap_of_equal_layers_has_no_effect():
    model = tiny_model("bert")
    with torch.no_grad():
        model.encoder.layer[1].load_state_dict(model.encoder.layer[0].state_dict())

    row = fp.commutativity(model, tiny_batches(), orders.swaps(3)[:1], progress=False).rows[1]

    assert row["relative_l2"] == pytest.approx(0, abs=1e-6)


def test_a_model_of_one_layer_has_no_pairs():
    model = tiny_model("bert")
    model.encoder.layer = model.encoder.layer[:1]

    with pytest.raises(InputError, match="commutator: a model of one layer has no two to compare"):
        fp.commutator(model, tiny_batches(), progress=False)


def test_an_unknown_metric_is_refused_by_name():
    result = fp.commutator(tiny_model("bert"), tiny_batches(), progress=False)

    for draw in (result.matrix, lambda metric: result.plot(metric=metric)):
        with pytest.raises(InputError, match="no row has 'kl'; the rows have cosine"):
            draw("kl")
