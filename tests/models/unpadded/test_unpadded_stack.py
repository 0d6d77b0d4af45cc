"""``UnpaddedStack``, compared with ``LayerStack`` and with the model."""

import pytest
import torch
import transformers

import fastprobe as fp
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import LayerStack
from fastprobe.models.unpadded.stack import UnpaddedStack
from fastprobe.orders import parse
from fastprobe.reordering import checked_stack
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


def model_with_head(family):
    """Return a random masked language model."""
    model, config, options = WITH_HEADS[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(transformers, model)(getattr(transformers, config)(**SMALL, **options)).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return made


def masked_batches():
    """Return random batches with labels at every fifth token."""
    batches = tiny_batches(batch_size=6)
    for number, batch in enumerate(batches):
        at = (torch.arange(14) + torch.arange(6)[:, None] + number) % 5 == 0
        batch["labels"] = torch.where(at & batch["attention_mask"].bool(), batch["input_ids"], -100)
    return batches


@pytest.mark.parametrize("order", ["0-3", "2,0,1", "1,1", "(0+2),1", "attention.2,ffn.0"])
@pytest.mark.parametrize("copies", [1, 3])
@torch.no_grad()
def test_every_order_gives_the_states_of_the_module_based_stack(order, copies):
    model, batch = tiny_model("bert"), tiny_batches()[0]
    points, mask = resolve(model), batch["attention_mask"].bool()
    states = []
    for make in (LayerStack.record, UnpaddedStack):
        stack = make(model, points, batch)
        state = torch.cat([stack.stem] * copies)
        for step in parse(order):
            state = stack.apply(step, state, copies)
        states.append([stack.rows(part, mask) for part in state.split(len(stack.stem))])

    for expected, unpadded in zip(*states, strict=True):
        torch.testing.assert_close(unpadded, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", WITH_HEADS)
def test_effects_equal_those_of_the_module_based_stack(family, monkeypatch):
    model, wanted = model_with_head(family), fp.orders.swaps(3)
    metrics = {"first": lambda state, baseline: (state - baseline)[..., 0]}
    options = {"metrics": metrics, "depths": True, "progress": False}

    unpadded = fp.commutativity(model, masked_batches(), wanted, **options)
    monkeypatch.setattr(checked_stack, "stack_for", lambda *args: (LayerStack.record, "asked for"))
    by_modules = fp.commutativity(model, masked_batches(), wanted, **options)

    assert unpadded.config["runner"] == "encoder"
    assert by_modules.config["runner"] == "modules of the model (asked for)"
    for row, expected in zip(unpadded.rows, by_modules.rows, strict=True):
        assert row.keys() == expected.keys()
        for column, value in expected.items():
            same = value if isinstance(value, str) or value is None else pytest.approx(value, abs=1e-4)
            assert row[column] == same, column


def test_commutators_equal_those_of_the_module_based_stack(monkeypatch):
    model = tiny_model("roberta")

    unpadded = fp.commutator(model, tiny_batches(), progress=False)
    monkeypatch.setattr(checked_stack, "stack_for", lambda *args: (LayerStack.record, "asked for"))
    by_modules = fp.commutator(model, tiny_batches(), progress=False)

    assert (unpadded.config["runner"], by_modules.config["runner"]) == ("encoder", "modules of the model (asked for)")
    for row, expected in zip(unpadded.rows, by_modules.rows, strict=True):
        assert row["relative_l2"] == pytest.approx(expected["relative_l2"], abs=1e-5)


@pytest.mark.parametrize("family", WITH_HEADS)
@torch.no_grad()
def test_the_head_gives_the_logits_of_the_model(family):
    model, batch = model_with_head(family), tiny_batches()[0]
    mask = batch["attention_mask"].bool()
    stack = UnpaddedStack(model, resolve(model), batch)
    state = stack.stem
    for layer in range(len(stack)):
        state = stack.apply(layer, state)

    logits = stack.head(stack.padded(state)).logits[mask]

    torch.testing.assert_close(logits, model(**batch).logits[mask], rtol=0, atol=1e-4)
    features = stack.masked_head.features(stack.rows(state, mask))
    product = torch.nn.functional.linear(features, stack.masked_head.weight, stack.masked_head.bias)
    torch.testing.assert_close(product, logits, rtol=0, atol=1e-4)
