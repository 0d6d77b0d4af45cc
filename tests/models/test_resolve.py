"""Resolved points: stacks of layers by running, places and aliases by layout, and models without a stack."""

import copy

import pytest
import torch
import transformers
from torch import nn

from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.points import POINTS, Element, Point
from fastprobe.models.resolve import resolve
from fastprobe.testing.tiny_models import FAMILIES, tiny_model
from tests.models.test_bert_variants import CHANGES, variant

T5 = transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50)
BERT = transformers.BertConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50
)
FORMS = {
    "bert": "attention and FFN, norm after the sum",
    "gpt2": "attention and FFN, norm before",
    "llama": "attention and FFN, norm before",
    "gemma2": "attention and FFN, norm before and after",
    "neox": "attention and FFN, in parallel, norm before",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_point_is_read_or_another_name_or_a_sum(family):
    points = resolve(tiny_model(family))

    for found in points.found:
        known = [*found.places, *found.aliases, *found.sums]
        missing = {"resid_mid", "attn_sum"} if points.parallel else set()
        assert sorted(known) == sorted({*POINTS} - missing)
        for part in (part for pair in found.sums.values() for part in pair):
            assert points.canonical(Point(part, 0)).name in found.places


@pytest.mark.parametrize("family", FORMS)
def test_the_form_of_a_layer_is_described(family):
    assert {layout.form for layout in resolve(tiny_model(family)).layouts} == {FORMS[family]}


@pytest.mark.parametrize(
    ("name", "adds"), [("skips", "attention.output.skip"), ("no-ffn", "attention.output.skip"), ("shared-layers", "")]
)
def test_modules_that_add_a_skip_connection_are_found(name, adds):
    points = resolve(variant(CHANGES[name]))

    assert points.layouts[0].attn.adds in (adds, "attention.output.skip")
    assert points.has_ffn == (name != "no-ffn")


def test_the_input_of_a_layer_is_the_output_of_the_layer_before_it():
    points = resolve(tiny_model("bert"))

    assert points.canonical(Point("attn_in", 2)) == Point("resid_post", 1)
    assert points.canonical(Point("attn_in", 0)) == Point("resid_pre", 0)


def test_a_sum_is_read_as_its_parts_until_its_last_use():
    points = resolve(tiny_model("bert"))

    until = points.needed_until([(Point("attn_sum", 1), 1), (Point("resid_post", 0), 0), (Point("mlp_out", 1), 2)])

    assert until == {Point("attn_out", 1): 1, Point("resid_post", 0): 1, Point("mlp_out", 1): 2}


class Mixer(nn.Module):
    """A layer that nobody knows: a running mean of tokens through a matrix."""

    def __init__(self, width=16):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, state):
        mean = state.cumsum(1) / torch.arange(1, state.shape[1] + 1)[None, :, None]
        return state + torch.tanh(self.inner(mean)) * state.sigmoid()


class Unknown(nn.Module):
    """A model whose layers are attributes with names of their own."""

    config = transformers.PreTrainedConfig(vocab_size=40)

    def __init__(self, rounds=1):
        super().__init__()
        self.words, self.rounds = nn.Embedding(40, 16), rounds
        self.first_stage, self.zweite_stufe, self.third = Mixer(), Mixer(), Mixer()

    def forward(self, input_ids, attention_mask=None):
        state = self.words(input_ids)
        for _ in range(self.rounds):
            state = self.third(self.zweite_stufe(self.first_stage(state)))
        return (state,)


def test_layers_are_found_whatever_they_are_called():
    model = Unknown()

    points = resolve(model)

    assert points.layers == (model.first_stage, model.zweite_stufe, model.third)
    assert points.elements == ["layer"]
    assert not points.has(Element("mlp", 0, 1))


def test_modules_that_run_twice_are_no_stack():
    with pytest.raises(UnsupportedModelError, match="no stack of layers was found"):
        resolve(Unknown(rounds=2))


def test_an_error_names_the_list_that_is_no_stack():
    config = transformers.AlbertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=50,
        embedding_size=8,
    )
    with pytest.raises(UnsupportedModelError, match="albert_layer_groups: AlbertLayerGroup runs 2 times in one pass"):
        resolve(transformers.AlbertModel(config))


def test_the_result_is_kept_until_a_module_is_replaced():
    model = tiny_model("llama")
    before = resolve(model)

    assert resolve(model) is before
    model.model.layers[1] = copy.deepcopy(model.model.layers[0])
    assert resolve(model).layers[1] is model.model.layers[1]


def test_a_value_that_is_no_model_is_refused():
    with pytest.raises(InputError, match="model: must be a Hugging Face model, got 'bert'"):
        resolve("bert")


def test_an_encoder_decoder_has_two_stacks():
    points = resolve(transformers.T5Model(T5))

    assert (points.stack, len(points.layers)) == ("encoder.block", 2)
    assert points.root == "encoder"


def test_a_stack_that_was_taken_out_of_an_encoder_decoder_is_judged_by_itself():
    assert len(resolve(transformers.T5EncoderModel(T5)).layers) == 2
    alone = copy.deepcopy(BERT)
    alone.is_encoder_decoder = True
    assert len(resolve(transformers.BertModel(alone)).layers) == 2


def test_an_unknown_stack_is_refused_with_those_that_there_are():
    with pytest.raises(InputError, match="stack: 'vision' is no stack of this model; it has encoder"):
        resolve(transformers.BertModel(BERT), "vision")
