"""Layers that keep something between runs: caches are turned off, anything else is refused with the layer's name."""

import pytest
import torch
from torch import nn

import fastprobe as fp
from fastprobe import orders
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import evaluating, first_tensor
from fastprobe.models.resolve import resolve
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

DECODERS = ["gpt2", "llama", "mistral", "gemma2", "neox"]
ORDERS = [*orders.swaps(3), *orders.repeats(3)]


class Wrapped(nn.Module):
    """A model that a wrapper calls, as adapters do.

    Args:
        model: a decoder.
        call: how the body calls the model: from the model, its inputs and the other arguments.
    """

    def __init__(self, model, call):
        super().__init__()
        self.base_model = Body(model, call)
        self.config = model.config
        self.can_generate = model.can_generate
        self.get_output_embeddings = model.get_output_embeddings

    def forward(self, input_ids, attention_mask, **options):
        return self.base_model(input_ids=input_ids, attention_mask=attention_mask, **options)


class Body(nn.Module):
    def __init__(self, model, call):
        super().__init__()
        self.model, self.call, self.config = model, call, model.config

    def forward(self, **inputs):
        options = {key: inputs.pop(key) for key in [*inputs] if key not in ("input_ids", "attention_mask")}
        return self.call(self.model, inputs, options)


CALLS = {
    "by kwargs": lambda model, inputs, options: model(**inputs, **options),
    "by configuration": lambda model, inputs, options: model(**inputs),
    "by default": lambda model, inputs, options: model(**inputs, use_cache=options.pop("use_cache", True)),
    "always": lambda model, inputs, options: model(**inputs, use_cache=True, **options),
    "always, for itself": lambda model, inputs, options: model(**inputs, use_cache=True),
}


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_no_cache_is_filled_however_a_model_takes_the_argument(family, call):
    model, batches = tiny_model(family), tiny_batches(sequences=6, batch_size=3)
    expected = fp.commutativity(model, batches, ORDERS, progress=False).rows

    rows = fp.commutativity(Wrapped(model, call), batches, ORDERS, progress=False).rows

    for row, other in zip(rows, expected, strict=True):
        for column in ("relative_l2", "cosine", "loss", "kl"):
            assert row[column] == pytest.approx(other[column], abs=1e-6), (row["name"], column)


def test_configurations_are_restored():
    model = Wrapped(tiny_model("llama"), CALLS["by configuration"])
    with evaluating(model):
        assert model.config.use_cache is False

    assert model.config.use_cache is True


def changed(layer, change):
    """Let ``change(input, output)`` replace the output of a layer."""
    forward = layer.forward

    def run(state, *args, **kwargs):
        out = forward(state, *args, **kwargs)
        found = change(state, first_tensor(out))
        return found if isinstance(out, torch.Tensor) else (found, *out[1:])

    layer.forward = run


def recurrent(layers):
    memory = [torch.zeros(())]

    def change(_, out):
        found, memory[0] = out + memory[0], out.mean()
        return found

    changed(layers[1], change)


def shared_by_layers(layers):
    memory = {}
    changed(layers[0], lambda state, out: memory.setdefault("x", out) if "x" not in memory else _kept(memory, out))
    changed(layers[1], lambda _, out: out + memory["x"].mean())


def _kept(memory, out):
    memory["x"] = out
    return out


def counted_in_a_buffer(layers):
    layers[1].register_buffer("calls", torch.zeros(()))

    def change(_, out):
        layers[1].calls += 1
        return out * (1 + 1e-3 * layers[1].calls)

    changed(layers[1], change)


def cached_by_itself(layers):
    seen = []

    def change(state, out):
        seen.append(state)
        return out + torch.cat(seen, 1).mean(1, keepdim=True)

    changed(layers[1], change)


def read_from_a_later_layer(layers):
    memory = [torch.zeros(())]
    changed(layers[1], lambda _, out: out + memory[0])

    def keep(_, out):
        memory[0] = out.mean()
        return out

    changed(layers[2], keep)


def random(layers):
    changed(layers[1], lambda _, out: nn.functional.dropout(out, 0.1, training=True))


MEMORIES = [recurrent, shared_by_layers, counted_in_a_buffer, cached_by_itself, read_from_a_later_layer, random]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: memory.__name__)
def test_a_layer_that_keeps_something_is_refused_by_name(family, memory):
    model = tiny_model(family)
    memory(resolve(model).layers)

    with pytest.raises(
        UnsupportedModelError, match=r"layer 1 (gives another output for the same state|cannot run apart)"
    ):
        fp.commutativity(model, tiny_batches(), ORDERS, progress=False)


def test_commutators_refuse_it_too():
    model = tiny_model("gpt2")
    counted_in_a_buffer(resolve(model).layers)

    with pytest.raises(UnsupportedModelError, match="layer 1 gives another output"):
        fp.commutator(model, tiny_batches(), progress=False)


def test_a_layer_that_writes_into_its_input_is_refused_by_name():
    model = tiny_model("gpt2")
    changed(resolve(model).layers[1], lambda state, out: state.copy_(out))

    with pytest.raises(UnsupportedModelError, match=r"layer 1 (writes into its input|gives another output)"):
        fp.commutativity(model, tiny_batches(), ORDERS, progress=False)


def test_a_layer_that_fails_when_it_runs_again_is_refused_by_name():
    model = tiny_model("gpt2")
    runs = []

    def change(_, out):
        runs.append(out)
        if len(runs) > 1:
            raise RuntimeError("sizes differ\nmore")
        return out

    changed(resolve(model).layers[1], change)

    with pytest.raises(UnsupportedModelError, match=r"layer 1 cannot run apart .* \(sizes differ\)"):
        fp.commutativity(model, tiny_batches(), ORDERS, progress=False)
