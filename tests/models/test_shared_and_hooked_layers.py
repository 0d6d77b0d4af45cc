"""Models with hooks of the user, with one module in several places, and with loops that mix states."""

import copy
import types

import pytest
import torch
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast

import fastprobe as fp
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import first_tensor
from fastprobe.models.resolve import resolve
from fastprobe.testing.tiny_models import tiny_batches, tiny_model
from tests.test_odd_batches import VERBS

BATCHES = tiny_batches(sequences=24)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("verb", VERBS)
def test_one_module_in_two_places_is_refused(verb, family):
    model = tiny_model(family)
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and m[0] is resolve(model).layers[0])
    layers[1] = layers[0]
    with pytest.raises(UnsupportedModelError, match=r"runs 2 times in one pass|one module is several of its layers"):
        VERBS[verb](model, BATCHES)

    layers[1] = copy.deepcopy(layers[0])
    assert len(resolve(model).layers) == 3


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_states_that_a_hook_of_the_user_changes_are_scanned_as_they_are(family):
    model = tiny_model(family)
    layers = resolve(model).layers
    steer = torch.randn(32, generator=torch.Generator().manual_seed(0))

    def hook(_, __, result):
        out = first_tensor(result) + steer
        return out if isinstance(result, torch.Tensor) else (out, *result[1:])

    handle = layers[0].register_forward_hook(hook)
    found = {row["layer"]: row["r2"] for row in fp.linearity(model, BATCHES, elements=["layer"], progress=False).rows}
    rows = []
    layers[1].register_forward_hook(lambda _, args, result: rows.append((args[0], first_tensor(result))))
    with torch.no_grad():
        for batch in BATCHES:
            model(**batch)
    masks = [batch["attention_mask"].bool() for batch in BATCHES]
    x, y = (torch.cat([row[k][mask] for row, mask in zip(rows, masks, strict=True)]).double() for k in (0, 1))
    x, y = x - x.mean(0), y - y.mean(0)
    residual = y - x @ torch.linalg.pinv(x, rcond=1e-6) @ y

    assert found[1] == pytest.approx(float(1 - residual.norm() ** 2 / y.norm() ** 2), abs=1e-4)
    handle.remove()
    assert found[1] != pytest.approx(fp.linearity(model, BATCHES, elements=["layer"], progress=False).rows[1]["r2"])


def test_a_hook_that_changes_the_input_of_a_layer_is_refused():
    model = tiny_model("bert")
    model.encoder.layer[1].register_forward_pre_hook(lambda _, args: (args[0] * 1.5, *args[1:]))
    with pytest.raises(UnsupportedModelError, match="does not receive what the one before returns"):
        fp.linearity(model, BATCHES, elements=["layer"], progress=False)


def model_with_loop(mix):
    """Return a decoder whose loop computes the next state from a layer's input and output."""
    model = tiny_model("llama")

    def forward(self, input_ids, attention_mask, **_):
        state = self.embed_tokens(input_ids)
        places = torch.arange(input_ids.shape[1])[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=state,
            attention_mask=attention_mask,
            past_key_values=None,
            position_ids=places,
        )
        rotary = self.rotary_emb(state, position_ids=places)
        for layer in self.layers:
            out = layer(state, attention_mask=mask, position_embeddings=rotary, position_ids=places)
            state = mix(state, first_tensor(out))
        return BaseModelOutputWithPast(last_hidden_state=self.norm(state))

    model.model.forward = types.MethodType(forward, model.model)
    return model


MIXED = {
    "scaled update": lambda x, y: x + 0.5 * (y - x),
    "moving average": lambda x, y: 0.9 * y + 0.1 * x,
    "normed": lambda x, y: y * (x.norm() / y.norm()) + 0.5 * (y - x),
    "clamped": lambda x, y: y.clamp(min=0) + 0 * x,
    "larger of the two": torch.maximum,
}


def output(model, order=None):
    with torch.no_grad():
        if order is None:
            return model(**BATCHES[0]).logits
        with fp.permute_layers(model, order):
            return model(**BATCHES[0]).logits


@pytest.mark.parametrize("name", MIXED)
def test_a_loop_that_mixes_the_input_and_the_output_of_a_layer_is_refused(name):
    with pytest.raises(
        UnsupportedModelError,
        match=r"changes the hidden states before layer 1|does not receive what the one before returns",
    ):
        output(model_with_loop(MIXED[name]), [0, 1, 2])


def test_a_loop_that_passes_states_on_gives_the_output_of_the_model():
    model = model_with_loop(lambda x, y: y)
    torch.testing.assert_close(output(model, [0, 1, 2]), output(model))
