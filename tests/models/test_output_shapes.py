"""Models whose outputs, heads or layers have forms of their own: every verb compares them at the last layer."""

import copy

import pytest
import torch
import transformers

import fastprobe as fp
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import first_tensor
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import LayerStack
from fastprobe.testing.catalogue import toy_model
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "pad_token_id": 0,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "vocab_size": 100, "pad_token_id": 0}


def without_dict():
    model = tiny_model("gpt2")
    model.config.return_dict = False
    return model


MODELS = {
    "sequence classifier": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)),
    "two heads": lambda: transformers.BertForPreTraining(transformers.BertConfig(**SMALL)),
    "pooled output": lambda: transformers.DPRQuestionEncoder(transformers.DPRConfig(**SMALL)),
    "outputs in tuples": without_dict,
    "layers that return lists": lambda: toy_model("openai-gpt"),
    "layers that return tuples": lambda: toy_model("deberta-v2"),
    "vocabulary size of a part": lambda: toy_model("gemma3"),
    "an FFN that adds in place": lambda: toy_model("falcon"),
    "an FFN on rows": lambda: toy_model("opt"),
    "a bias of positions from the first layer": lambda: toy_model("t5"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_verb_runs(kind):
    torch.manual_seed(0)
    model, batches = MODELS[kind]().eval(), tiny_batches(sequences=6, batch_size=3)

    scan = fp.linearity(model, batches, folds=0, score_sequences=0, progress=False)
    effects = fp.commutativity(model, batches, [[0, 2, 1]], progress=False)
    removed = fp.ablation(model, batches, elements=["attn", "mlp"], layers=[1], progress=False)

    assert {row["element"] for row in scan.rows} >= {"layer", "attn", "mlp"}
    assert effects.rows[1]["relative_l2"] > 1e-5
    assert all(row["relative_l2"] > 1e-5 for row in removed.rows[1:])
    assert fp.probe(model, batches, tasks="token", folds=0, score_sequences=0, progress=False).rows


@torch.no_grad()
def test_layers_keep_the_bias_of_positions_that_the_first_one_hands_on():
    model, batch = toy_model("t5"), tiny_batches()[0]
    points = resolve(model)
    encoder = points.part_of(model)
    calls, order = [], (2, 0, 1)
    for layer in points.layers:
        layer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    encoder(**batch)
    state = calls[0][0][0]
    for layer in order:
        args, kwargs = calls[layer]
        state = first_tensor(points.layers[layer](state, *args[1:], **kwargs))

    stack = LayerStack.record(encoder, points, batch)
    found = stack.stem
    for layer in order:
        found = stack.apply(layer, found)

    torch.testing.assert_close(found, state, rtol=0, atol=1e-6)


def test_a_live_model_whose_layers_hand_on_more_is_refused():
    with (
        pytest.raises(UnsupportedModelError, match="hand on more than the hidden states"),
        fp.swap_layers(toy_model("t5"), 0, 1),
    ):
        pass


def test_layers_that_hand_on_a_second_state_are_refused():
    with pytest.raises(UnsupportedModelError, match="hand on a second state"):
        fp.commutativity(toy_model("pegasus_x"), tiny_batches(length=16, shortest=16), [[0, 2, 1]], progress=False)


def test_the_decoder_of_an_encoder_decoder_is_chosen_by_name():
    model, batches = toy_model("t5"), tiny_batches(sequences=6, batch_size=3)

    effects = fp.commutativity(model, batches, [[0, 2, 1]], stack="decoder", progress=False)
    scan = fp.linearity(model, batches, stack="decoder", elements=["layer"], folds=0, score_sequences=0, progress=False)

    assert effects.config["stack"] == scan.config["stack"] == "decoder.block"
    assert effects.rows[1]["delta_loss"] is not None


def test_an_ffn_in_chunks_is_scanned_or_refused_in_one_line():
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**SMALL, chunk_size_feed_forward=4)).eval()
    plain = copy.deepcopy(model)
    for layer in plain.encoder.layer:
        layer.chunk_size_feed_forward = 0
    batches = tiny_batches(length=16)

    one = {"elements": ["layer"], "score_sequences": 0, "progress": False}
    rows = [fp.linearity(chosen, batches, **one).rows for chosen in (model, plain)]

    assert [row["r2"] for row in rows[0]] == pytest.approx([row["r2"] for row in rows[1]], abs=1e-6)
    with pytest.raises(UnsupportedModelError, match="its forward pass fails on this batch") as error:
        fp.linearity(model, tiny_batches(length=14), progress=False)
    assert len(str(error.value).splitlines()) == 1


def test_states_that_do_not_fit_the_mask_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"receive states of shape \(2, 4, 32\) for ids of shape \(2, 16\)"):
        fp.linearity(toy_model("canine"), tiny_batches(), progress=False)
