"""Parameters and training compute of a variant matched to those of BERT."""

import pytest

from fastprobe.errors import InputError
from fastprobe.pretraining.costs import Costs, flops_per_token
from fastprobe.pretraining.matching import match_bert
from fastprobe.pretraining.variants import Variant
from tests.pretraining.test_costs import NAMES, SIZE, config_of


@pytest.mark.parametrize("name", ["no-ffn", "attention-for-ffn", "no-ffn+gelu-attention"])
def test_matching_parameters_adds_layers_to_variants_without_ffns(name):
    size, steps = match_bert(Variant.parse(name), SIZE, 100, "parameters")

    ratio = Costs.of(config_of(name, size)).layer_parameters / Costs.of(config_of("bert")).layer_parameters
    assert (size.layers, steps) == (12, 100)
    assert ratio == pytest.approx(1, abs=0.03)  # biases and LayerNorms
    assert match_bert(Variant.parse("attention-for-ffn"), SIZE, 100, "none") == (size, 100)


@pytest.mark.parametrize("name", NAMES)
def test_matching_compute_changes_the_number_of_steps(name):
    size, steps = match_bert(Variant.parse(name), SIZE, 10_000, "compute")

    spent = steps * flops_per_token(config_of(name, size), 24)
    assert spent == pytest.approx(10_000 * flops_per_token(config_of("bert"), 24), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "match", "message"),
    [
        ("bert", "speed", "'speed' is not one of none, parameters, compute"),
        ("shared-layers", "parameters", "hidden_size"),
    ],
)
def test_an_impossible_match_raises_an_error(name, match, message):
    with pytest.raises(InputError, match=message):
        match_bert(Variant.parse(name), SIZE, 100, match)
