"""Wrappers that change what the model inside them is given are refused by every verb."""

import pytest
import torch
from torch import nn

import fastprobe as fp
from fastprobe.errors import UnsupportedModelError
from fastprobe.testing.tiny_models import tiny_batches, tiny_model
from tests.models.test_layer_order import VERBS
from tests.models.test_memoryless import CALLS, Wrapped

BATCHES = tiny_batches(sequences=6, batch_size=6)


def soft_prompt(model, inputs, options):
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    states = torch.cat([torch.ones(len(embedded), 2, embedded.shape[2]), embedded], 1)
    mask = nn.functional.pad(inputs["attention_mask"], (2, 0), value=1)
    return model(inputs_embeds=states, attention_mask=mask)


def prefix(model, inputs, options):
    first = torch.full((len(inputs["input_ids"]), 2), 7)
    cache = model(first, use_cache=True).past_key_values
    mask = nn.functional.pad(inputs["attention_mask"], (2, 0), value=1)
    return model(inputs["input_ids"], attention_mask=mask, past_key_values=cache)


def shifted(model, inputs, options):
    return model(inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]) + 1)


def other_ids(model, inputs, options):
    return model(**inputs | {"input_ids": inputs["input_ids"].roll(1, 1)})


def without_mask(model, inputs, options):
    return model(inputs["input_ids"], attention_mask=torch.ones_like(inputs["attention_mask"]))


def on_long_sequences(model, inputs, options):
    if inputs["attention_mask"].sum(1).max() > 10:
        return shifted(model, inputs, options)
    return model(**inputs)


CHANGES = [soft_prompt, prefix, shifted, other_ids, on_long_sequences]


class Prompted(nn.Module):
    """A wrapper whose ``base_model`` is the model without what the wrapper adds, as in PEFT."""

    def __init__(self, model, change):
        super().__init__()
        self.base_model, self.change, self.config = model, change, model.config
        self.get_output_embeddings = model.get_output_embeddings

    def forward(self, input_ids, attention_mask, **options):
        return self.change(self.base_model, {"input_ids": input_ids, "attention_mask": attention_mask}, options)


@pytest.mark.parametrize("verb", [*VERBS][1:])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_wrapper_that_changes_the_inputs_is_refused(change, verb):
    model = Prompted(tiny_model("llama"), change).eval()

    with pytest.raises(
        UnsupportedModelError, match="Prompted: it changes the states of the LlamaForCausalLM inside it"
    ):
        VERBS[verb](model)


def test_a_mask_that_a_wrapper_drops_is_refused():
    model = Prompted(tiny_model("bert"), without_mask).eval()
    model.get_output_embeddings = lambda: None

    with pytest.raises(UnsupportedModelError, match="changes the states of the BertModel inside it by"):
        fp.linearity(model, BATCHES, progress=False)


def test_a_wrapper_that_cannot_run_the_batch_is_refused():
    model = Prompted(tiny_model("llama"), lambda *_: 1 / 0).eval()

    with pytest.raises(UnsupportedModelError, match=r"Prompted: it cannot run the first batch \(division by zero\)"):
        fp.linearity(model, BATCHES, progress=False)


def test_a_soft_prompt_inside_of_the_body_is_refused():
    model = Wrapped(tiny_model("llama"), soft_prompt).eval()

    with pytest.raises(UnsupportedModelError, match=r"states of shape \(2, 18, 32\) for ids of shape \(2, 16\)"):
        fp.linearity(model, BATCHES, progress=False)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_wrapper_that_hands_its_inputs_on_gives_the_numbers_of_the_model(call):
    model = tiny_model("llama")
    expected = fp.linearity(model, BATCHES, elements=["layer"], progress=False).rows

    found = fp.linearity(Wrapped(model, call), BATCHES, elements=["layer"], progress=False).rows

    assert [row["r2"] for row in found] == [row["r2"] for row in expected]


def test_models_of_transformers_do_not_run_once_more():
    model, runs = tiny_model("llama"), []
    model.lm_head.register_forward_hook(lambda *_: runs.append(1))
    forward = model.forward

    fp.linearity(model, BATCHES, elements=["layer"], progress=False)
    model.forward = lambda **inputs: forward(**inputs | {"input_ids": inputs["input_ids"].roll(1, 1)})

    assert not runs
    with pytest.raises(
        UnsupportedModelError, match="LlamaForCausalLM: it changes the states of the LlamaModel inside it"
    ):
        fp.linearity(model, BATCHES, elements=["layer"], progress=False)
