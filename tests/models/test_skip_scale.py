"""Scaled skip connections, compared with layers written out by hand."""

import pytest
import torch
import transformers

import fastprobe as fp
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import LayerStack
from fastprobe.orders import Sublayer
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model

SERIAL = [family for family in FAMILIES if family != "neox"]
SCALES = [0.0, 0.5, 2.0, {1: 0.0}]


def one_sequence():
    """Return ids without padding, which need no mask."""
    return torch.randint(3, 100, (1, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("parts", [("attention",), ("ffn",), ("attention", "ffn")], ids=str)
@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
@torch.no_grad()
def test_an_encoder_gives_the_states_of_layers_written_out(family, scale, parts):
    model, ids = tiny_model(family, dtype=torch.float64), one_sequence()
    with fp.skip_scale(model, scale, parts=parts):
        changed = model(ids)[0]

    state = model.embeddings(ids)
    state = model.embeddings_project(state) if family == "electra" else state
    for index, layer in enumerate(model.encoder.layer):
        s = scale.get(index, 1.0) if isinstance(scale, dict) else scale
        heads, out = layer.attention.self(state)[0], layer.attention.output
        state = out.LayerNorm(out.dense(heads) + (s if "attention" in parts else 1.0) * state)
        added = layer.output.dense(layer.intermediate(state))
        state = layer.output.LayerNorm(added + (s if "ffn" in parts else 1.0) * state)
    torch.testing.assert_close(changed, state, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", SCALES, ids=str)
@torch.no_grad()
def test_gpt2_gives_the_logits_of_layers_written_out(scale):
    model, ids = tiny_model("gpt2", dtype=torch.float64), one_sequence()
    with fp.skip_scale(model, scale):
        changed = model(ids).logits

    body = model.transformer
    mask = torch.full((ids.shape[1], ids.shape[1]), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    state = body.wte(ids) + body.wpe(torch.arange(ids.shape[1]))
    for index, layer in enumerate(body.h):
        s = scale.get(index, 1.0) if isinstance(scale, dict) else scale
        state = s * state + layer.attn(layer.ln_1(state), attention_mask=mask)[0]
        state = s * state + layer.mlp(layer.ln_2(state))
    torch.testing.assert_close(changed, model.lm_head(body.ln_f(state)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("family", SERIAL)
@torch.no_grad()
def test_scale_one_changes_nothing_and_the_model_is_restored(family):
    model, batch = tiny_model(family, dtype=torch.float64), tiny_batches()[0]
    before = model(**batch)[0]

    with fp.skip_scale(model, 1.0):
        torch.testing.assert_close(model(**batch)[0], before, rtol=0, atol=1e-12)
    with fp.skip_scale(model, 0.0):
        assert (model(**batch)[0] - before).norm() > 0.01 * before.norm()

    assert torch.equal(model(**batch)[0], before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@torch.no_grad()
def test_swaps_change_more_without_skip_connections():
    model, batches = tiny_model("bert"), tiny_batches()
    with fp.skip_scale(model, 0.0):
        without = fp.commutativity(model, batches, fp.orders.swaps(3), progress=False)

    usual = fp.commutativity(model, batches, fp.orders.swaps(3), progress=False)

    assert all(a["relative_l2"] > b["relative_l2"] for a, b in zip(without.rows[1:], usual.rows[1:], strict=True))


def test_unknown_layers_parts_and_scales_are_refused():
    with (
        pytest.raises(InputError, match="there is no layer 3; the model has 0 to 2"),
        fp.skip_scale(tiny_model("bert"), {3: 0.0}),
    ):
        pass
    with (
        pytest.raises(InputError, match="parts: 'mlp' is not one of attention, ffn"),
        fp.skip_scale(tiny_model("bert"), 0, parts=["mlp"]),
    ):
        pass
    for scale in ("x", float("nan")):
        with pytest.raises(InputError, match="scale must be a finite number"), fp.skip_scale(tiny_model("bert"), scale):
            pass
    with pytest.raises(UnsupportedModelError, match="share one skip"), fp.skip_scale(tiny_model("neox"), 0):
        pass


def repeated(model):
    """Give all layers of an encoder the output module of the first."""
    for layer in model.encoder.layer[1:]:
        layer.output = model.encoder.layer[0].output
    return model


@pytest.mark.parametrize("scale", [0.0, {1: 0.5}], ids=str)
def test_a_layer_that_shares_its_module_is_refused(scale):
    model = repeated(tiny_model("bert"))
    with (
        pytest.raises(UnsupportedModelError, match=r"layers . and ., . share one Linear.*cannot be scaled alone"),
        fp.skip_scale(model, scale, parts="ffn"),
    ):
        model(**tiny_batches()[0])


def test_a_skip_connection_that_is_no_plain_sum_is_refused():
    model = tiny_model("bert").train()
    with (
        fp.skip_scale(model, 0.5),
        pytest.raises(UnsupportedModelError, match=r"the attention of layer 0 is no plain sum.*use evaluation mode"),
    ):
        model(**tiny_batches()[0])


@torch.no_grad()
def test_the_factor_of_a_layer_that_multiplies_its_parts_counts():
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.GraniteConfig(vocab_size=100, num_key_value_heads=4, residual_multiplier=0.3, **size)
    model, batch, seen = transformers.GraniteForCausalLM(config).eval(), tiny_batches()[0], {}
    layer = model.model.layers[0]
    layer.mlp.register_forward_hook(lambda _, __, out: seen.update(f=out.clone()))
    layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    layer.register_forward_hook(lambda _, __, out: seen.update(y=out))

    with fp.skip_scale(model, 0.5, parts="ffn"):
        model(**batch)

    torch.testing.assert_close(seen["y"], 0.5 * seen["x"] + 0.3 * seen["f"], rtol=1e-4, atol=1e-5)


def test_a_layer_that_does_not_call_its_module_is_refused():
    model = tiny_model("bert")
    output = model.encoder.layer[1].output
    weight = output.dense.weight
    output.forward = lambda x, state: output.LayerNorm(x @ weight.mT + state)
    with (
        fp.skip_scale(model, 0.5),
        pytest.raises(UnsupportedModelError, match=r"layer 1 does not call output.dense"),
    ):
        model(**tiny_batches()[0])


@pytest.mark.parametrize("parts", ["attention", "ffn"])
@pytest.mark.parametrize("family", SERIAL)
@torch.no_grad()
def test_the_two_halves_of_a_scaled_layer_give_the_layer(family, parts):
    model = tiny_model(family, dtype=torch.float64)
    with fp.skip_scale(model, 0.5, parts=parts):
        stack = LayerStack.record(model, resolve(model), tiny_batches()[0])
        whole = stack.apply(1, stack.stem)
        middle = stack.apply(Sublayer("attention", 1), stack.stem)
        halves = stack.apply(Sublayer("ffn", 1), middle)

    torch.testing.assert_close(halves, whole, rtol=0, atol=1e-10)
