"""States side by side get the outputs that each gets alone, whatever a layer receives besides them."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

import fastprobe as fp
from fastprobe import orders
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import LayerStack
from fastprobe.orders import Parallel
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model

LENGTH = 6


class Toy(nn.Module):
    """Layers that receive one more argument.

    Args:
        make: from the mask of a batch to the argument.
        use: from a state and the argument to the output of a layer.
    """

    def __init__(self, make, use):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.layers = nn.Embedding(100, 8), nn.ModuleList([ToyLayer(use), ToyLayer(use)])
        self.make = make

    def forward(self, input_ids, attention_mask):
        state = self.embedding(input_ids)
        for layer in self.layers:
            state = layer(state, self.make(attention_mask))
        return state


class ToyLayer(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.linear, self.use = nn.Linear(8, 8), use

    def forward(self, hidden_states, extra):
        return self.use(self.linear(hidden_states), extra)


def lengths(mask):
    return mask.sum(1).float()


def scaled(state, scale):
    return state * scale.view(-1, 1, 1)


def in_groups(state, group):
    out = torch.zeros_like(state)
    for number in group.unique():
        out[group == number] = state[group == number] * (1 + number)
    return out


def flat(state, count):
    return state.reshape(count, -1, state.shape[-1]).cumsum(1).view_as(state)


def by_head(state, scale):
    heads = len(scale)
    return (state.reshape(heads, -1) * scale[:, None]).view_as(state)


CASES = {
    "tensor": (lengths, scaled),
    "tuple in a dict": (lambda mask: {"a": (lengths(mask), None)}, lambda state, extra: scaled(state, extra["a"][0])),
    "list": (lambda mask: [lengths(mask)], lambda state, extra: scaled(state, extra[0])),
    "object": (lambda mask: SimpleNamespace(scale=lengths(mask)), lambda state, extra: scaled(state, extra.scale)),
    "subclass of dict": (
        lambda mask: transformers.BatchEncoding({"scale": lengths(mask)}),
        lambda state, extra: scaled(state, extra["scale"]),
    ),
    "groups": (lambda mask: mask.sum(1) % 2, in_groups),
    "one number a place": (lambda mask: torch.arange(LENGTH) * 1.0, lambda state, extra: state * extra[:, None]),
    "number of sequences": (len, flat),
    "shape": (lambda mask: tuple(mask.shape), lambda state, extra: flat(state, extra[0])),
    "heads of sequences": (lambda mask: lengths(mask).repeat_interleave(2), by_head),
    "second dimension": (lambda mask: lengths(mask)[None], lambda state, extra: state * extra[0][:, None, None]),
    "statistics of the batch": (lambda mask: None, lambda state, extra: state - state.mean((0, 1))),
    "weights": (lambda mask: torch.ones(2, 8, 8), lambda state, extra: state @ extra[0] + state @ extra[1]),
}


def batch_of(sequences):
    return tiny_batches(sequences=sequences, length=LENGTH, batch_size=sequences, shortest=2)[0]


@pytest.mark.parametrize("sequences", [1, 2, 3, LENGTH])
@pytest.mark.parametrize(("make", "use"), CASES.values(), ids=CASES)
@torch.no_grad()
def test_copies_get_the_output_of_each_alone(make, use, sequences):
    model, batch = Toy(make, use).eval(), batch_of(sequences)
    points = SimpleNamespace(layers=tuple(model.layers), carries="")
    stack, alone = (LayerStack.record(model, points, batch) for _ in range(2))
    states = torch.randn(3, *stack.stem.shape, generator=torch.Generator().manual_seed(1))

    for step in (0, 1, Parallel((0, 1))):
        expected = torch.cat([alone.apply(step, state) for state in states])
        torch.testing.assert_close(stack.apply(step, states.flatten(0, 1), 3), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_each_pattern_of_arguments_is_checked_once_a_run():
    model = Toy(lengths, scaled).eval()
    points, checked, runs = SimpleNamespace(layers=tuple(model.layers), carries=""), {}, []
    for layer in model.layers:
        layer.register_forward_hook(lambda *_: runs.append(1))

    # A check is three runs of a layer.
    for sequences, expected in ((4, 6 + 2), (5, 2), (1, 6 + 2), (1, 2)):
        stack = LayerStack.record(model, points, batch_of(sequences), checked=checked)
        runs.clear()
        for layer in range(2):
            stack.apply(layer, torch.cat([stack.stem] * 2), 2)
        assert len(runs) == expected
    assert [*checked.values()] == [True, True]


_SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
OTHERS = {
    "yoso": lambda: transformers.YosoModel(
        transformers.YosoConfig(**_SMALL, vocab_size=100, max_position_embeddings=64, use_expectation=True)
    ),
    "mra": lambda: transformers.MraModel(transformers.MraConfig(**_SMALL, vocab_size=100, max_position_embeddings=64)),
    "xmod": lambda: transformers.XmodModel(
        transformers.XmodConfig(**_SMALL, vocab_size=100, languages=["a", "b"], default_language="a")
    ),
    "bigcode": lambda: transformers.GPTBigCodeForCausalLM(
        transformers.GPTBigCodeConfig(n_embd=32, n_layer=3, n_head=4, n_inner=64, vocab_size=100)
    ),
}


def any_model(family):
    if family in FAMILIES:
        return tiny_model(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OTHERS[family]().eval()


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
@pytest.mark.parametrize("sequences", [1, 2, 16])
@torch.no_grad()
def test_copies_of_any_family_and_batch_get_the_output_of_each_alone(family, sequences):
    model = any_model(family)
    batch = tiny_batches(sequences=sequences, length=16, batch_size=sequences, shortest=8)[0]
    stack, alone = (LayerStack.record(model, resolve(model), batch) for _ in range(2))
    states = torch.stack([stack.stem, stack.stem.flip(2), 2 * stack.stem])

    for layer in range(3):
        expected = torch.cat([alone.apply(layer, state) for state in states])
        torch.testing.assert_close(stack.apply(layer, states.flatten(0, 1), 3), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_known_families_run_side_by_side(family):
    model, checked = tiny_model(family), {}
    for batch in tiny_batches(sequences=7):
        with torch.no_grad():
            stack = LayerStack.record(model, resolve(model), batch, checked=checked)
            stack.apply(0, torch.cat([stack.stem] * 2), 2)

    assert checked
    assert all(checked.values())


@pytest.mark.parametrize("family", OTHERS)
def test_orders_of_one_sequence_a_batch_are_those_of_separate_runs(family):
    model, batches = any_model(family), tiny_batches(sequences=2, length=16, batch_size=1)
    swaps = orders.swaps(3)

    rows = fp.commutativity(model, batches, swaps, progress=False).rows

    for order, row in zip(swaps, rows[1:], strict=True):
        alone = fp.commutativity(model, batches, [order], progress=False).rows[1]
        assert row["relative_l2"] == pytest.approx(alone["relative_l2"], rel=1e-4), row["name"]


def test_a_head_that_accepts_only_whole_batches_gets_them():
    model, batches = any_model("bigcode"), tiny_batches(sequences=8, batch_size=4, shortest=14)
    labelled = [batch | {"labels": batch["input_ids"]} for batch in batches]

    row = fp.commutativity(model, labelled, [(0, 2, 1)], progress=False).rows[0]

    with torch.no_grad():
        expected = sum(float(model(**batch).loss) for batch in labelled) / len(labelled)
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_head_that_depends_on_the_place_of_a_token_is_refused():
    model = tiny_model("gpt2")
    model.lm_head.register_forward_hook(lambda module, args, logits: logits.cumsum(1))

    with pytest.raises(UnsupportedModelError, match=r"the logits of a token change by .* when it moves"):
        fp.commutativity(model, tiny_batches(), [(0, 2, 1)], progress=False)


@pytest.mark.parametrize(
    ("model", "config", "options"),
    [("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", {}), ("DebertaModel", "DebertaConfig", {"vocab_size": 100})],
)
def test_layers_that_return_lists_or_several_values_run_in_other_orders(model, config, options):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, **options}
    made = getattr(transformers, model)(getattr(transformers, config)(**size)).eval()

    row = fp.commutativity(made, tiny_batches(), [(0, 2, 1)], progress=False).rows[1]

    assert row["relative_l2"] > 0


@pytest.mark.parametrize("shape", [(4, 2, 14, 8), (2, 16, 8)])
def test_states_of_another_shape_than_the_batch_are_refused(shape, monkeypatch):
    model = tiny_model("gpt2")
    record = LayerStack.record

    def other(*args, **kwargs):
        stack = record(*args, **kwargs)
        stack.stem = torch.zeros(shape)
        return stack

    monkeypatch.setattr(LayerStack, "record", other)

    with pytest.raises(UnsupportedModelError, match="its layers receive states of shape"):
        fp.commutativity(model, tiny_batches(), [(0, 2, 1)], progress=False)
