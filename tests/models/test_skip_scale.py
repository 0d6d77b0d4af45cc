"""Scaled skip connections: against layers written out by hand."""

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model

SERIAL = [family for family in FAMILIES if family != "neox"]
SCALES = [0.0, 0.5, 2.0, {1: 0.0}]


def one_sequence():
    """Ids without padding, so that no mask is needed."""
    return torch.randint(3, 100, (1, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("parts", [("attention",), ("ffn",), ("attention", "ffn")], ids=str)
@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
@torch.no_grad()
def test_an_encoder_is_as_written_out(family, scale, parts):
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
def test_a_gpt2_is_as_written_out(scale):
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
def test_one_changes_nothing_zero_changes_much_and_all_is_put_back(family):
    model, batch = tiny_model(family, dtype=torch.float64), tiny_batches()[0]
    before = model(**batch)[0]

    with fp.skip_scale(model, 1.0):
        torch.testing.assert_close(model(**batch)[0], before, rtol=0, atol=1e-12)
    with fp.skip_scale(model, 0.0):
        assert (model(**batch)[0] - before).norm() > 0.01 * before.norm()

    assert torch.equal(model(**batch)[0], before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@torch.no_grad()
def test_swaps_can_be_asked_of_a_model_without_skips():
    model, batches = tiny_model("bert"), tiny_batches()
    with fp.skip_scale(model, 0.0):
        without = fp.commutativity(model, batches, fp.orders.swaps(3), progress=False)

    usual = fp.commutativity(model, batches, fp.orders.swaps(3), progress=False)

    assert all(a["relative_l2"] > b["relative_l2"] for a, b in zip(without.rows[1:], usual.rows[1:], strict=True))


def test_what_makes_no_sense_is_refused():
    with (
        pytest.raises(InputError, match="there is no layer 3; the model has 0 to 2"),
        fp.skip_scale(tiny_model("bert"), {3: 0.0}),
    ):
        pass
    with (
        pytest.raises(InputError, match="'mlp' is not one of attention, ffn"),
        fp.skip_scale(tiny_model("bert"), 0, parts=["mlp"]),
    ):
        pass
    for scale in ("x", float("nan")):
        with pytest.raises(InputError, match="is no finite number"), fp.skip_scale(tiny_model("bert"), scale):
            pass
    with pytest.raises(UnsupportedModelError, match="share one skip"), fp.skip_scale(tiny_model("neox"), 0):
        pass
