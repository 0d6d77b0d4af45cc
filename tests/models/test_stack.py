"""The stack: any order against the model with its modules physically moved, its own order against the model itself."""

import copy

import pytest
import torch

from fastprobe.errors import UnsupportedModelError
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import LayerStack
from fastprobe.orders import Parallel, Sublayer, parse
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model

PARTS = [family for family in FAMILIES if family != "neox"]


def stack_of(family, batch_size=6):
    model = tiny_model(family)
    batch = tiny_batches(batch_size=batch_size)[0]
    points = resolve(model)
    with torch.no_grad():
        return model, batch, points, LayerStack.record(model, points, batch)


def run(stack, order, copies=1):
    state = torch.cat([stack.stem] * copies)
    for step in order:
        state = stack.apply(step, state, copies)
    return state


def final_state(model, points, batch):
    """What comes out of the last layer, read by a hook."""
    seen = []
    handle = points.layers[-1].register_forward_hook(lambda *args: seen.append(args[2]))
    out = model(**batch, use_cache=False) if "use_cache" in type(model).forward.__code__.co_varnames else model(**batch)
    handle.remove()
    return seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0], out


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_in_its_own_order_a_stack_is_the_model(family):
    model, batch, points, stack = stack_of(family)
    expected, out = final_state(model, points, batch)

    state = run(stack, range(3))

    assert torch.equal(state, expected)
    head = stack.head(state)
    assert torch.equal(head[0], out[0])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_permuted_stack_is_the_model_with_its_modules_moved(family):
    model, batch, _, stack = stack_of(family)
    state = run(stack, (2, 0, 1))

    moved = copy.deepcopy(model)
    layers = next(m for m in moved.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    for place, layer in enumerate([layers[i] for i in (2, 0, 1)]):
        layers[place] = layer
    if kinds := getattr(moved.config, "layer_types", None):  # there a mask goes with the place, here with the layer
        moved.config.layer_types = [kinds[i] for i in (2, 0, 1)]
    expected, _ = final_state(moved, resolve(moved), batch)
    torch.testing.assert_close(state, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_copies_side_by_side_are_each_what_they_are_alone(family):
    _, _, _, stack = stack_of(family)

    for order in ((0, 1, 1, 2), (2, 2), (1,)):
        alone, together = run(stack, order), run(stack, order, copies=3)
        torch.testing.assert_close(together, torch.cat([alone] * 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", PARTS)
@torch.no_grad()
def test_attention_then_ffn_is_the_layer(family):
    _, _, _, stack = stack_of(family)

    for layer in range(3):
        whole = stack.apply(layer, stack.stem)
        halves = stack.apply(Sublayer("ffn", layer), stack.apply(Sublayer("attention", layer), stack.stem))
        assert torch.equal(whole, halves)


@torch.no_grad()
def test_halves_of_layers_that_read_one_state_are_refused():
    _, _, points, stack = stack_of("neox")
    assert points.parallel

    with pytest.raises(UnsupportedModelError, match="cannot be run apart"):
        run(stack, parse("attention.0"))


@torch.no_grad()
def test_parallel_layers_are_averaged():
    _, _, _, stack = stack_of("bert")

    state = stack.apply(Parallel((0, 2)), stack.stem)

    torch.testing.assert_close(state, (stack.apply(0, stack.stem) + stack.apply(2, stack.stem)) / 2)


@torch.no_grad()
def test_a_model_is_as_it_was_even_when_a_layer_fails(monkeypatch):
    model, _, points, stack = stack_of("gpt2")
    monkeypatch.setattr(points.layers[1].mlp, "forward", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stack.apply(Sublayer("ffn", 1), stack.stem)
    monkeypatch.undo()

    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in points.layers[1].modules())
