"""Points of every family: found, checked, and refused where they are not what they seem."""

import pytest
import torch
import transformers

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
def test_a_layer_that_does_something_else_is_found_out(family):
    model = tiny_model(family)
    points = resolve(model)
    points.layers[1].register_forward_hook(lambda m, a, out: out * 1.001)

    checked = check_points(model, points, tiny_batches()[0])

    assert next(i.layer for i in checked.identities if not i.holds) == 1
    with pytest.raises(UnsupportedModelError, match="layer 1"):
        checked.require(family)


def test_the_last_hidden_state_of_a_decoder_is_not_taken_for_its_last_layer():
    model = tiny_model("llama")
    batch = tiny_batches()[0]
    points = resolve(model)
    last = []
    points.layers[-1].register_forward_hook(lambda m, a, out: last.append(out))

    with torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states[-1]

    assert not torch.allclose(hidden, last[0])  # the trap
    assert check_points(model, points, batch).identities[-1].holds


def test_models_without_known_layers_are_refused_with_the_structures_known():
    config = transformers.PhiConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
    with pytest.raises(UnsupportedModelError, match=r"the structures known are BERT.*Llama"):
        resolve(transformers.PhiForCausalLM(config))


def test_encoder_decoders_are_refused():
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50)
    with pytest.raises(UnsupportedModelError, match="two stacks"):
        resolve(transformers.T5Model(config))


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_weight_that_is_not_finite_is_named(family):
    model = tiny_model(family)
    name, weight = [(name, weight) for name, weight in model.named_parameters() if weight.ndim == 2][-5]
    weight.data[1, 2] = torch.nan

    with pytest.raises(UnsupportedModelError, match=f"its weight {name} has numbers that are NaN or infinite"):
        fp.linearity(model, tiny_batches(), progress=False)
    with pytest.raises(UnsupportedModelError, match=f"its weight {name} has numbers that are NaN or infinite"):
        fp.commutativity(model, tiny_batches(), [[0, 2, 1]], progress=False)


def test_states_that_a_dtype_cannot_hold_are_no_weights():
    model = tiny_model("llama", dtype=torch.float16)
    for module in (model.model.layers[1].mlp.down_proj, model.model.layers[1].mlp.up_proj):
        module.weight.data *= 1e4

    with pytest.raises(UnsupportedModelError, match="its states are NaN or infinite in float16, though its weights"):
        fp.linearity(model, tiny_batches(), progress=False)
