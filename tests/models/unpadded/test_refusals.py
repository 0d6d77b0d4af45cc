"""Models and batches that the unpadded encoder refuses, each with its reason."""

import re

import pytest
import torch

from fastprobe.models.unpadded.refusals import encoder_refusal
from fastprobe.testing.tiny_models import tiny_model
from tests.models.unpadded.test_encoder import padded, random_model


class MyLinear(torch.nn.Linear):
    """Linear module of another class, as adapters insert it."""


def _adapter(model):
    model.encoder.layer[1].output.dense = MyLinear(65, 33)


def _forward_hook(model):
    model.encoder.layer[0].attention.register_forward_hook(lambda *_: None)


def _pre_hook(model):
    model.embeddings.LayerNorm.register_forward_pre_hook(lambda *_: None)


def _replaced(model):
    model.encoder.layer[1].forward = lambda state, *_, **__: state


def _half_trained(model):
    model.encoder.layer[1].attention.self.dropout.train()


def _two_dtypes(model):
    model.encoder.layer[0].output.LayerNorm.double()


def _subclassed_layer(model):
    class MyLayer(type(model.encoder.layer[0])):
        pass

    model.encoder.layer[0].__class__ = MyLayer


def _custom_attention(model):
    model.config._attn_implementation = "mine"


CHANGES = [
    (_adapter, r"encoder.layer.1.output.dense is a .*MyLinear"),
    (_forward_hook, "a hook on encoder.layer.0.attention"),
    (_pre_hook, "a hook on embeddings.LayerNorm"),
    (_replaced, "the forward of encoder.layer.1 was replaced"),
    (_half_trained, "encoder.layer.1.attention.self.dropout is in training mode"),
    (_two_dtypes, "weights are of several kinds"),
    (_subclassed_layer, "encoder.layer.0 is a .*MyLayer"),
    (_custom_attention, "attention implementation 'mine'"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
def test_a_changed_model_is_refused_with_a_reason(change, reason):
    model = random_model()
    assert encoder_refusal(model, padded([3])) is None

    change(model)

    assert re.search(reason, encoder_refusal(model, padded([3])))


def test_global_hooks_are_refused():
    model = random_model()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "hooks on all modules" in encoder_refusal(model, padded([3]))
    finally:
        handle.remove()


@torch.no_grad()
def test_hooks_that_transformers_leaves_behind_are_allowed():
    model = random_model()
    model(**padded([3]), output_hidden_states=True)

    assert encoder_refusal(model, padded([3])) is None


def test_other_families_decoders_and_batches_are_refused():
    batch = padded([3])
    decoder = random_model(is_decoder=True)

    assert "is not one of BertModel" in encoder_refusal(tiny_model("gpt2"), batch)
    assert "decoder" in encoder_refusal(decoder, batch)
    assert "inputs_embeds" in encoder_refusal(random_model(), batch | {"inputs_embeds": torch.zeros(1, 3, 33)})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder_refusal(random_model(), batch) == "autocast is on"
