"""Identities between the points of every family, and models for which they fail."""

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.identities import check_points
from fastprobe.models.resolve import resolve
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_identities_of_every_family_hold(family, dtype):
    model = tiny_model(family, dtype=dtype)
    points = resolve(model)

    checked = check_points(model, points, tiny_batches()[0])

    checked.require(family)
    assert len(points.layers) == 3
    assert {i.layer for i in checked.identities} == {0, 1, 2}
    assert len(points.elements) == (6 if family == "neox" else 10)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_a_layer_that_computes_something_else_is_refused(family):
    model = tiny_model(family)
    points = resolve(model)
    points.layers[1].register_forward_hook(lambda m, a, out: out * 1.001)

    checked = check_points(model, points, tiny_batches()[0])

    assert next(i.layer for i in checked.identities if not i.holds) == 1
    with pytest.raises(UnsupportedModelError, match="layer 1"):
        checked.require(family)


def test_resid_post_of_the_last_layer_is_taken_before_the_final_norm_of_a_decoder():
    model = tiny_model("llama")
    batch = tiny_batches()[0]
    points = resolve(model)
    last = []
    points.layers[-1].register_forward_hook(lambda m, a, out: last.append(out))

    with torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states[-1]

    assert not torch.allclose(hidden, last[0])  # the model returns it after the final norm
    assert check_points(model, points, batch).identities[-1].holds


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_an_error_names_the_weight_that_is_not_finite(family):
    model = tiny_model(family)
    name, weight = [(name, weight) for name, weight in model.named_parameters() if weight.ndim == 2][-5]
    weight.data[1, 2] = torch.nan

    with pytest.raises(UnsupportedModelError, match=f"its weight {name} has numbers that are NaN or infinite"):
        fp.linearity(model, tiny_batches(), progress=False)
    with pytest.raises(UnsupportedModelError, match=f"its weight {name} has numbers that are NaN or infinite"):
        fp.commutativity(model, tiny_batches(), [[0, 2, 1]], progress=False)


def test_an_error_names_the_dtype_if_states_overflow_and_weights_are_finite():
    model = tiny_model("llama", dtype=torch.float16)
    for module in (model.model.layers[1].mlp.down_proj, model.model.layers[1].mlp.up_proj):
        module.weight.data *= 1e4

    with pytest.raises(UnsupportedModelError, match="its states are NaN or infinite in float16, though its weights"):
        fp.linearity(model, tiny_batches(), progress=False)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_an_inner_identity_that_fails_matters_only_to_elements_with_its_points(family):
    model, batches = tiny_model(family), tiny_batches()
    points = resolve(model)
    whole = points.layers[1].forward
    points.layers[1].forward = lambda *args, **kwargs: whole(*args, **kwargs) * 1.001

    def run(**selected):
        return fp.linearity(model, batches, folds=0, progress=False, **selected)

    for elements in (None, ["mlp"], ["ffn"]):
        with pytest.raises(UnsupportedModelError, match=r"fails in layer 1 .*elements=\['layer'\] and spans need none"):
            run(elements=elements)
    row = run(elements=["layer"], layers=[1], spans="all").rows[0]
    assert row["r2"] == pytest.approx(r2_of_layer(model, points, 1, batches), abs=1e-6)
    assert run(elements=["mlp"], layers=[0]).rows
    assert fp.ablation(model, batches, elements=["layer"], mode="linear", progress=False).rows


@torch.no_grad()
def r2_of_layer(model, points, layer, batches):
    """Return the r2 of the map from the input of a layer to its output, from hooks on the layer itself."""
    fit, states = fp.LinearFit(32, 32, folds=0), []
    block = points.layers[layer]
    place = points.found[layer].place
    with place("resid_pre").read(block, states.append), place("resid_post").read(block, states.append):
        for batch in batches:
            model(**batch)
            fit.update(*states, batch["attention_mask"].bool())
            states.clear()
    return fit.score("r2")
