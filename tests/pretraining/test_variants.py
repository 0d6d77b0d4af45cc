"""Variants by name."""

import pytest

from fastprobe.errors import InputError
from fastprobe.pretraining.variants import VARIANTS, Size, Variant

SIZE = Size(layers=6, hidden_size=32, heads=2, ffn_size=64, vocab_size=100, max_seq_len=16)


def test_each_name_changes_something_and_bert_nothing():
    changed = {name: Variant.parse("no-skip:0" if name == "no-skip" else name) for name in VARIANTS}

    assert not changed.pop("bert").changes
    assert all(variant.changes or variant.no_skip for variant in changed.values())


def test_names_are_joined_and_ranges_are_half_open():
    config = Variant.parse("no-ffn+gelu-attention+no-skip:0,3-5").config(SIZE)

    assert (config.ffn, config.attention_gelu, config.no_skip_layers) == ("none", True, [0, 3, 4])
    assert (config.num_hidden_layers, config.hidden_size, config.max_position_embeddings) == (6, 32, 16)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("bert", 1e-3),
        ("no-ffn+gelu-attention", 1e-3),
        ("attention-for-ffn", 3e-4),
        ("no-skip:1,2", 1e-4),
        ("linear-ffn+linear-attention", 1e-4),
    ],
)
def test_a_variant_that_learns_nothing_at_the_usual_rate_has_a_lower_one(text, rate):
    assert Variant.parse(text).learning_rate == rate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("albert", "'albert' is not one of bert, no-ffn"),
        ("no-skip", "layers go with no-skip and only there"),
        ("no-ffn:2", "layers go with no-skip and only there"),
        ("no-skip:first", "'first' is not a layer"),
        ("no-ffn+linear-ffn", "changes ffn twice"),
        ("no-ffn+", "'' is not one of"),
    ],
)
def test_what_is_no_variant_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        Variant.parse(text)


def test_a_layer_that_is_not_there_keeps_no_skip():
    with pytest.raises(InputError, match="no layer 6 among 0 to 5"):
        Variant.parse("no-skip:6").config(SIZE)


@pytest.mark.parametrize(
    ("change", "message"), [({"layers": 0}, "layers: must be 1"), ({"heads": 3}, "3 do not divide a hidden_size of 32")]
)
def test_a_size_that_no_bert_has_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        Size(**(vars(SIZE) | change)).check()
