"""Parameter counts and FLOPs against the model and torch's counter; matching of parameters and compute."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastprobe.errors import InputError
from fastprobe.models.bert_variants import BertVariantForMaskedLM
from fastprobe.pretraining.costs import Costs, flops_per_token
from fastprobe.pretraining.matching import match_bert
from fastprobe.pretraining.variants import VARIANTS, Size, Variant

SIZE = Size(layers=4, hidden_size=48, heads=3, ffn_size=192, vocab_size=200, max_seq_len=24)
NAMES = ["no-skip:1-3" if name == "no-skip" else name for name in VARIANTS]
SAME = ["linear-ffn", "gelu-attention", "linear-attention", "no-skip:1-3"]


def config_of(name, size=SIZE):
    return Variant.parse(name).config(size)


@pytest.mark.parametrize("name", NAMES)
def test_flops_agree_with_the_counter_of_torch(name):
    config = config_of(name)
    config._attn_implementation = "eager"  # torch does not count the fused attention of a CPU
    model = BertVariantForMaskedLM(config).train()
    ids = torch.randint(5, 200, (2, 24))
    labels = torch.where(torch.arange(24) % 6 == 0, ids, -100)

    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, labels=labels).loss
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        loss.backward()

    assert forward == flops_per_token(config, 24, predicted=4 / 24) * 2 * 24
    assert counter.get_total_flops() == 2 * forward


@pytest.mark.parametrize("name", NAMES)
def test_parameter_counts_agree_with_the_model(name):
    model, costs = BertVariantForMaskedLM(config_of(name)), Costs.of(config_of(name))

    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert costs.layer_parameters == sum(parameter.numel() for parameter in model.bert.encoder.parameters())


def test_variants_with_the_same_parameters_have_equal_counts():
    bert = Costs.of(config_of("bert"))

    assert {Costs.of(config_of(name)).parameters for name in SAME} == {bert.parameters}
    assert Costs.of(config_of("weighted-skip")).parameters == bert.parameters + 2 * 4
    assert Costs.of(config_of("shared-layers")).layer_parameters == bert.layer_parameters / 4


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
