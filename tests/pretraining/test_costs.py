"""Parameter counts and FLOPs against the model and torch's counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastprobe.models.bert_variants import BertVariantForMaskedLM
from fastprobe.pretraining.costs import Costs, flops_per_token
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
