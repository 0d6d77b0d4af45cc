"""Variants parsed from their names."""

import pytest

from fastprobe.errors import InputError
from fastprobe.pretraining.variants import VARIANTS, Size, Variant

SIZE = Size(layers=6, hidden_size=32, heads=2, ffn_size=64, vocab_size=100, max_seq_len=16)


def test_every_variant_except_bert_changes_something():
    changed = {name: Variant.parse("no-skip:0" if name == "no-skip" else name) for name in VARIANTS}

    assert not changed.pop("bert").changes
    assert all(variant.changes or variant.no_skip for variant in changed.values())


def test_names_can_be_joined_and_ranges_are_half_open():
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
def test_some_variants_have_a_lower_default_learning_rate(text, rate):
    assert Variant.parse(text).learning_rate == rate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("albert", "'albert' is not one of bert, no-ffn"),
        ("no-skip", "no-skip must have layers, as in no-skip:0,2-4, and no other variant"),
        ("no-ffn:2", "no-skip must have layers, as in no-skip:0,2-4, and no other variant"),
        ("no-skip:first", "'first' is not a layer"),
        ("no-ffn+linear-ffn", "changes ffn twice"),
        ("no-ffn+", "'' is not one of"),
    ],
)
def test_an_invalid_name_raises_an_error(text, message):
    with pytest.raises(InputError, match=message):
        Variant.parse(text)


def test_a_missing_layer_of_no_skip_raises_an_error():
    with pytest.raises(InputError, match="no layer 6 among 0 to 5"):
        Variant.parse("no-skip:6").config(SIZE)


@pytest.mark.parametrize(
    ("change", "message"), [({"layers": 0}, "layers: must be 1"), ({"heads": 3}, "3 do not divide a hidden_size of 32")]
)
def test_an_invalid_size_raises_an_error(change, message):
    with pytest.raises(InputError, match=message):
        Size(**(vars(SIZE) | change)).check()
