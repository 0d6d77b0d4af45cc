"""``LayerStack``: its own order compared with the model, other orders with models whose modules are moved."""

import copy

import pytest
import torch

from fastprobe.errors import UnsupportedModelError
from fastprobe.models.calling import first_tensor
from fastprobe.models.resolve import resolve
from fastprobe.models.stack import LayerStack
from fastprobe.orders import Parallel, Sublayer, parse
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model

PARTS = [family for family in FAMILIES if family != "neox"]


def recorded(family):
    """Return a tiny model, a batch, its points and its stack."""
    model, batch = tiny_model(family), tiny_batches()[0]
    points = resolve(model)
    with torch.no_grad():
        return model, batch, points, LayerStack.record(model, points, batch)


def run(stack, order, copies=1):
    state = torch.cat([stack.stem] * copies)
    for step in order:
        state = stack.apply(step, state, copies)
    return state


def final_state(model, points, batch):
    """Return the output of the last layer, read by a hook, and that of the model."""
    states = []
    handle = points.layers[-1].register_forward_hook(lambda *args: states.append(args[2]))
    out = model(**batch, use_cache=False) if "use_cache" in type(model).forward.__code__.co_varnames else model(**batch)
    handle.remove()
    return first_tensor(states[0]), out


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_in_its_own_order_a_stack_gives_the_output_of_the_model(family):
    model, batch, points, stack = recorded(family)
    expected, out = final_state(model, points, batch)

    state = run(stack, range(3))

    assert torch.equal(state, expected)
    head = stack.head(state)
    assert torch.equal(head[0], out[0])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_permuted_stack_gives_the_state_of_moved_modules(family):
    model, batch, _, stack = recorded(family)
    state = run(stack, (2, 0, 1))

    moved = copy.deepcopy(model)
    layers = next(m for m in moved.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    for place, layer in enumerate([layers[i] for i in (2, 0, 1)]):
        layers[place] = layer
    if kinds := getattr(moved.config, "layer_types", None):  # the model selects masks by place, the stack by layer
        moved.config.layer_types = [kinds[i] for i in (2, 0, 1)]
    expected, _ = final_state(moved, resolve(moved), batch)
    torch.testing.assert_close(state, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_concatenated_copies_give_the_state_of_each_alone(family):
    _, _, _, stack = recorded(family)

    for order in ((0, 1, 1, 2), (2, 2), (1,)):
        alone, together = run(stack, order), run(stack, order, copies=3)
        torch.testing.assert_close(together, torch.cat([alone] * 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", PARTS)
@torch.no_grad()
def test_attention_and_ffn_in_sequence_are_the_layer(family):
    _, _, _, stack = recorded(family)

    for layer in range(3):
        whole = stack.apply(layer, stack.stem)
        halves = stack.apply(Sublayer("ffn", layer), stack.apply(Sublayer("attention", layer), stack.stem))
        assert torch.equal(whole, halves)


@torch.no_grad()
def test_sub_layers_of_parallel_attention_and_ffn_are_refused():
    _, _, points, stack = recorded("neox")
    assert points.parallel

    with pytest.raises(UnsupportedModelError, match="cannot be run apart"):
        run(stack, parse("attention.0"))


@torch.no_grad()
def test_parallel_layers_are_averaged():
    _, _, _, stack = recorded("bert")

    state = stack.apply(Parallel((0, 2)), stack.stem)

    torch.testing.assert_close(state, (stack.apply(0, stack.stem) + stack.apply(2, stack.stem)) / 2)


@torch.no_grad()
def hooks(layer):
    """Return the hooks of a layer and of the modules in it."""
    return [hook for module in layer.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]


def test_a_model_is_restored_if_a_layer_fails(monkeypatch):
    model, _, points, stack = recorded("gpt2")
    before = hooks(points.layers[1])  # some versions of Transformers leave theirs
    own = [module for module in model.modules() if "forward" in vars(module)]
    monkeypatch.setattr(points.layers[1].mlp, "forward", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stack.apply(Sublayer("ffn", 1), stack.stem)
    monkeypatch.undo()

    assert [module for module in model.modules() if "forward" in vars(module)] == own
    assert hooks(points.layers[1]) == before
