"""Contracts of recorders and stacks, for every runner: which row of a state is which token."""

import pytest
import torch

from fastprobe.models.calling import first_input
from fastprobe.models.points import Point
from fastprobe.models.recorder import ModuleRecorder
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import LayerStack
from fastprobe.models.unpadded.recorder import UnpaddedRecorder
from fastprobe.models.unpadded.stack import UnpaddedStack
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

RECORDERS = {"modules": ModuleRecorder, "unpadded": UnpaddedRecorder}
STACKS = {"modules": LayerStack.record, "unpadded": UnpaddedStack}


@pytest.fixture
def model():
    return tiny_model("bert")


@pytest.fixture
def batch():
    return tiny_batches()[0]


@pytest.fixture
def stem(model, batch):
    """The input of the first layer, ``(batch, length, width)``, read by a hook."""
    states = []
    layer = resolve(model).layers[0]
    with layer.register_forward_pre_hook(
        lambda _, args, kwargs: states.append(first_input(args, kwargs)), with_kwargs=True
    ):
        model(**batch)
    return states[0].detach()


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", RECORDERS.values(), ids=RECORDERS)
def test_rows_of_names_the_sequence_of_every_row(kind, model, batch, stem):
    mask, kept = batch["attention_mask"].bool(), []
    with kind(
        model, resolve(model), {Point("resid_pre", 0): 0}, lambda _, held: kept.extend(held.values())
    ) as recorder:
        recorder.run(batch)
        sequence = recorder.rows_of(batch, torch.arange(len(mask)))

    rows = kept[0].flatten(0, -2)
    assert len(sequence) == len(rows)
    assert int((sequence >= 0).sum()) == int(mask.sum())
    for number in range(len(mask)):
        close(rows[sequence == number], stem[number][mask[number]])


@pytest.mark.parametrize("kind", RECORDERS.values(), ids=RECORDERS)
def test_a_point_is_held_until_its_last_use(kind, model, batch):
    wanted = {Point("resid_post", 0): 1, Point("mlp_out", 1): 1, Point("attn_out", 0): 0}
    held_at = []

    with kind(model, resolve(model), wanted, lambda layer, held: held_at.append((layer, {*held}))) as recorder:
        recorder.run(batch | {"labels": batch["input_ids"]})

    two_layers = Point("resid_post", 0)
    assert held_at == [(0, {two_layers, Point("attn_out", 0)}), (1, {two_layers, Point("mlp_out", 1)})]


@pytest.mark.parametrize("kind", RECORDERS.values(), ids=RECORDERS)
def test_a_recorder_restores_the_model(kind, model, batch):
    model.train()
    model.encoder.layer[1].eval()

    with kind(model, resolve(model), {Point("resid_post", 2): 2}, lambda *_: None) as recorder:
        recorder.run(batch)
        assert not model.training

    modes = [layer.training for layer in model.encoder.layer]
    assert (model.training, modes) == (True, [True, False, True])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.encoder.layer.modules())


@pytest.mark.parametrize("make", STACKS.values(), ids=STACKS)
@torch.no_grad()
def test_rows_are_tokens_in_the_order_of_the_batch(make, model, batch, stem):
    stack = make(model, resolve(model), batch)
    at = batch["attention_mask"].bool() & (torch.arange(stem.shape[1]) % 2 == 0)

    close(stack.rows(stack.stem, at), stem[at])


@pytest.mark.parametrize("make", STACKS.values(), ids=STACKS)
@torch.no_grad()
def test_by_row_gives_the_value_of_the_token_of_every_row(make, model, batch, stem):
    stack = make(model, resolve(model), batch)
    mask = batch["attention_mask"].bool()
    number = torch.arange(mask.numel()).view(mask.shape)

    of_row = stack.by_row(number)

    assert {*number[mask].tolist()} <= {*of_row.tolist()}
    close(stack.stem.flatten(0, -2)[stack.by_row(mask)], stem.flatten(0, 1)[of_row[stack.by_row(mask)]])


@pytest.mark.parametrize("make", STACKS.values(), ids=STACKS)
@torch.no_grad()
def test_a_padded_state_has_the_shape_of_the_batch(make, model, batch, stem):
    stack = make(model, resolve(model), batch, first=7)
    mask = batch["attention_mask"].bool()

    padded = stack.padded(stack.stem)

    assert padded.shape == stem.shape
    close(padded[mask], stem[mask])
    assert (stack.first, len(stack)) == (7, 3)
