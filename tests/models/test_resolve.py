"""Resolved points: places and aliases by layout, and models without a known layout."""

import pytest
import transformers

from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.layouts import LAYOUTS
from fastprobe.models.points import POINTS, Point
from fastprobe.models.resolve import resolve
from fastprobe.testing.tiny_models import FAMILIES, tiny_model
from tests.models.test_bert_variants import CHANGES, variant


@pytest.mark.parametrize("family", FAMILIES)
def test_every_point_is_read_or_another_name_or_a_sum(family):
    points = resolve(tiny_model(family))

    known = [*points.places, *points.aliases, *points.sums]
    missing = {"resid_mid", "attn_sum"} if points.parallel else set()
    assert sorted(known) == sorted({*POINTS} - missing)
    for part in (part for pair in points.sums.values() for part in pair):
        assert points.canonical(Point(part, 0)).name in points.places


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("skips", "BERT with weighted skips"),
        ("no-ffn", "BERT without FFN"),
        ("shared-layers", "BERT with weighted skips"),
    ],
)
def test_variants_of_bert_have_their_own_layouts(name, family):
    points = resolve(variant(CHANGES[name]))

    assert points.layout.family == family
    assert points.has_ffn == (name != "no-ffn")


def test_the_input_of_a_layer_is_the_output_of_the_layer_before_it():
    points = resolve(tiny_model("bert"))

    assert points.canonical(Point("attn_in", 2)) == Point("resid_post", 1)
    assert points.canonical(Point("attn_in", 0)) == Point("resid_pre", 0)


def test_a_sum_is_read_as_its_parts_until_its_last_use():
    points = resolve(tiny_model("bert"))

    until = points.needed_until([(Point("attn_sum", 1), 1), (Point("resid_post", 0), 0), (Point("mlp_out", 1), 2)])

    assert until == {Point("attn_out", 1): 1, Point("resid_post", 0): 1, Point("mlp_out", 1): 2}


def test_an_error_lists_the_known_layouts_if_none_fits():
    config = transformers.PhiConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
    with pytest.raises(UnsupportedModelError, match=r"the structures known are BERT.*Llama") as error:
        resolve(transformers.PhiForCausalLM(config))

    assert all(layout.family in str(error.value) for layout in LAYOUTS)


def test_encoder_decoders_are_refused():
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50)
    with pytest.raises(UnsupportedModelError, match="two stacks"):
        resolve(transformers.T5Model(config))


def test_a_value_that_is_no_model_is_refused():
    with pytest.raises(InputError, match="model: must be a Hugging Face model, got 'bert'"):
        resolve("bert")


def test_a_stack_that_was_taken_out_of_an_encoder_decoder_is_judged_by_itself():
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50)
    bert = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50
    )

    with pytest.raises(UnsupportedModelError, match=r"lists are of .*T5Block.*; the structures known are") as error:
        resolve(transformers.T5EncoderModel(config))

    assert "pass one" not in str(error.value)
    bert.is_encoder_decoder = True
    assert len(resolve(transformers.BertModel(bert)).layers) == 2


def test_a_refused_encoder_decoder_names_its_stacks():
    bert = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50
    )
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert)
    model = transformers.EncoderDecoderModel(both)

    with pytest.raises(UnsupportedModelError, match=r"two stacks of layers, encoder and decoder"):
        resolve(model)
    assert len(resolve(model.encoder).layers) == 2
