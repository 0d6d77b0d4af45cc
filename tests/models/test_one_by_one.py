"""Layers that run one at a time on stored states, and models whose layers cannot."""

import pytest
import torch

from fastprobe.models.calling import evaluating
from fastprobe.models.layer_reader import ModuleLayerReader
from fastprobe.models.one_by_one import layer_reader_for, one_by_one_refusal
from fastprobe.models.packed_calls import packed, unpacked
from fastprobe.models.points import Point
from fastprobe.models.recorder import ModuleRecorder
from fastprobe.models.resolve import resolve
from fastprobe.models.runner import recorder_for
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model

BATCH = tiny_batches(sequences=4, batch_size=4)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_points_read_layer_by_layer_equal_those_of_a_forward_pass(family):
    model = tiny_model(family)
    points = resolve(model)
    kind, _ = recorder_for(model, points, BATCH)
    depth = range(len(points.layers))
    wanted = {points.canonical(Point(name, layer)): layer for layer in depth for name in points.found[layer].places}
    expected, found = {}, {}
    with kind(model, points, wanted, lambda _, held: expected.update(held)) as recorder:
        recorder.run(BATCH)

    with layer_reader_for(kind)(model, points) as reader:
        state, arguments = reader.stem(BATCH)
        for index in depth:
            with reader.layer(index) as run:
                state, held = run(state, arguments, wanted)
                found |= held

    assert found.keys() == expected.keys()
    for point, tensor in expected.items():
        torch.testing.assert_close(found[point], tensor, rtol=1e-5, atol=1e-5)
    assert one_by_one_refusal(model, points, BATCH, layer_reader_for(kind)) is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def refusal(model):
    return one_by_one_refusal(model, resolve(model), BATCH, layer_reader_for(ModuleRecorder))


def replaced(model, layers, forward_of):
    """Return the refusal after the forwards of the layers are replaced, with the points that were found before."""
    resolve(model)
    for index, layer in enumerate(layers):
        layer.forward = forward_of(index, layer.forward)
    return refusal(model)


def test_a_layer_that_reads_an_earlier_layer_through_a_shared_object_is_refused():
    model, kept = tiny_model("llama"), {}

    def forward_of(index, plain):
        def forward(*args, **kwargs):
            kept[index] = plain(*args, **kwargs)
            return kept[index] + 0.5 * kept[0] if index == 2 else kept[index]

        return forward

    assert "layer 2 run on its input alone gives another output" in replaced(model, model.model.layers, forward_of)


def test_a_second_state_that_layers_pass_on_is_refused():
    model = tiny_model("llama")
    resolve(model)
    model.model.forward = two_states(model.model)

    def forward_of(index, plain):
        def forward(hidden, second, **kwargs):
            out = plain(hidden + 0.1 * second, **kwargs)
            return out, second + out

        return forward

    assert "layer 0 passes more than one state on" in replaced(model, model.model.layers, forward_of)


def two_states(body):
    """Return a forward pass that hands each layer the two states of the one before."""

    def forward(input_ids, attention_mask=None, use_cache=False):
        hidden = body.embed_tokens(input_ids)
        positions = torch.arange(input_ids.shape[1])[None]
        rotary, second = body.rotary_emb(hidden, positions), torch.zeros_like(hidden)
        for layer in body.layers:
            hidden, second = layer(hidden, second, position_embeddings=rotary, attention_mask=None)
        return hidden

    return forward


def test_a_layer_that_writes_into_its_input_is_refused():
    model = tiny_model("llama")

    def forward_of(index, plain):
        def forward(hidden_states, **kwargs):
            out = plain(hidden_states, **kwargs)
            return hidden_states.copy_(out) if index == 1 else out

        return forward

    assert replaced(model, model.model.layers, forward_of) == "layer 1 writes into its input"


def test_layers_that_cannot_run_alone_give_their_error_as_the_reason():
    model = tiny_model("llama")

    def forward_of(index, plain):
        calls = []

        def forward(*args, **kwargs):
            calls.append(1)
            if len(calls) > 1:
                raise RuntimeError("only once\nand more")
            return plain(*args, **kwargs)

        return forward

    assert replaced(model, model.model.layers, forward_of) == (
        "its layers cannot run one at a time (RuntimeError: only once)"
    )


def test_packed_arguments_hold_each_tensor_once_and_come_back(randn):
    mask, table = randn(2, 3), randn(4)
    calls = [((mask,), {"rotary": (table, table), "n": 3}), ((mask.clone(),), {"rotary": [table], "n": None})]
    tensors = []

    skeleton = packed(calls, tensors)
    back = unpacked(skeleton, tensors)

    assert [tensor.shape for tensor in tensors] == [mask.shape, table.shape]
    assert back[0][0][0] is mask
    assert back[1][0][0] is mask
    assert back[0][1]["rotary"] == (table, table)
    assert back[1][1]["n"] is None


def test_training_mode_comes_back(monkeypatch):
    model = tiny_model("gpt2").train()
    with ModuleLayerReader(model, resolve(model)) as reader, evaluating(model):
        assert not model.training
        reader.stem(BATCH)
    assert model.training
