"""Scaled skip connections, compared with layers written out by hand."""

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError, UnsupportedModelError
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
