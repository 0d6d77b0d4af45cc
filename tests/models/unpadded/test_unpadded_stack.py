"""The stack on tokens without padding: whatever ``LayerStack`` gives for a model, step by step."""

import pytest
import torch
import transformers

import fastprobe as fp
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import LayerStack
from fastprobe.models.unpadded import stack as flat_stack
from fastprobe.models.unpadded.stack import FlatStack, stack_of
from fastprobe.orders import parse
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "pad_token_id": 0,
}
WITH_HEADS = {
    "bert": ("BertForMaskedLM", "BertConfig", {}),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", {}),
    "electra": ("ElectraForMaskedLM", "ElectraConfig", {"embedding_size": 16}),
}


def model_with_head(name):
    model, config, options = WITH_HEADS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(transformers, model)(getattr(transformers, config)(**SMALL, **options)).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return made


def masked_batches():
    batches = tiny_batches(batch_size=6)
    for number, batch in enumerate(batches):
        at = (torch.arange(14) + torch.arange(6)[:, None] + number) % 5 == 0
        batch["labels"] = torch.where(at & batch["attention_mask"].bool(), batch["input_ids"], -100)
    return batches


@pytest.mark.parametrize("order", ["0-3", "2,0,1", "1,1", "(0+2),1", "attention.2,ffn.0"])
@pytest.mark.parametrize("copies", [1, 3])
@torch.no_grad()
def test_every_order_gives_the_states_of_the_models_own_layers(order, copies):
    model, batch = tiny_model("bert"), tiny_batches()[0]
    points, mask = resolve(model), batch["attention_mask"].bool()
    states = []
    for make in (LayerStack.record, FlatStack):
        stack = make(model, points, batch)
        state = torch.cat([stack.stem] * copies)
        for step in parse(order):
            state = stack.apply(step, state, copies)
        states.append([stack.rows(part, mask) for part in state.split(len(stack.stem))])

    for own, flat in zip(*states, strict=True):
        torch.testing.assert_close(flat, own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", WITH_HEADS)
def test_effects_are_those_of_the_models_own_modules(family, monkeypatch):
    model, wanted = model_with_head(family), fp.orders.swaps(3)
    options = {"metrics": {"first": lambda state, own: (state - own)[..., 0]}, "depths": True, "progress": False}

    flat = fp.commutativity(model, masked_batches(), wanted, **options)
    monkeypatch.setattr(fp.runs, "stack_of", lambda *args: (LayerStack.record, "asked for"))
    own = fp.commutativity(model, masked_batches(), wanted, **options)

    assert flat.config["runner"] == "encoder"
    assert own.config["runner"] == "modules of the model (asked for)"
    for ours, theirs in zip(flat.rows, own.rows, strict=True):
        assert ours.keys() == theirs.keys()
        for column, value in theirs.items():
            same = value if isinstance(value, str) or value is None else pytest.approx(value, abs=1e-4)
            assert ours[column] == same, column


def test_commutators_are_those_of_the_models_own_modules(monkeypatch):
    model = tiny_model("roberta")

    flat = fp.commutator(model, tiny_batches(), progress=False)
    monkeypatch.setattr(fp.runs, "stack_of", lambda *args: (LayerStack.record, "asked for"))
    own = fp.commutator(model, tiny_batches(), progress=False)

    assert (flat.config["runner"], own.config["runner"]) == ("encoder", "modules of the model (asked for)")
    for ours, theirs in zip(flat.rows, own.rows, strict=True):
        assert ours["relative_l2"] == pytest.approx(theirs["relative_l2"], abs=1e-5)


def test_a_head_that_is_not_known_or_off_is_left_to_the_model(monkeypatch):
    model, batch = model_with_head("bert"), tiny_batches()[0]
    points = resolve(model)
    assert stack_of(model, points, batch) == (FlatStack, "")

    features = flat_stack.MaskedHead.features
    monkeypatch.setattr(flat_stack.MaskedHead, "features", lambda *args: 1.01 * features(*args))
    assert "its head is off from the model's by" in stack_of(model, points, batch)[1]

    monkeypatch.setattr(flat_stack.MaskedHead, "of", classmethod(lambda cls, model: None))
    assert stack_of(model, points, batch)[1] == "the head of BertForMaskedLM is not known"


def test_other_families_keep_their_modules():
    model, batch = tiny_model("gpt2"), tiny_batches()[0]

    make, reason = stack_of(model, resolve(model), batch)

    assert make == LayerStack.record
    assert "GPT2Model is not one of BertModel" in reason
