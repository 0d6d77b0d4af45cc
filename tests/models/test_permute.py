"""Layers of a live model in another order: against copies with their modules physically moved, cache included."""

import copy

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.models import stack
from fastprobe.models.resolve import resolve
from fastprobe.orders import parse
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model
from tests.reordering.test_commutativity import final

DECODERS = ["gpt2", "llama", "mistral", "qwen3", "gemma2", "gemma3", "neox"]
ORDERS = [(2, 0, 1), (0, 1, 1, 2, 2), (1,), (2, 2)]


def moved(model, order):
    """A copy whose list holds copies of layers, each told its place: what a careful user would build by hand."""
    model = copy.deepcopy(model)
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.ModuleList) and len(child) == 3:
                layers = torch.nn.ModuleList(copy.deepcopy(child[layer]) for layer in order)
                for place, layer in enumerate(layers):
                    for module in layer.modules():
                        if hasattr(module, "layer_idx"):
                            module.layer_idx = place
                setattr(parent, name, layers)
    model.config.num_hidden_layers = len(order)
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = [kinds[layer] for layer in order]
    return model


def output(model, batch):
    model.config.use_cache = False
    return model(**batch)[0]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_model_runs_as_one_with_its_modules_moved(family, order):
    model, batch = tiny_model(family), tiny_batches()[0]
    before = output(model, batch)

    with fp.permute_layers(model, order):
        changed = output(model, batch)

    torch.testing.assert_close(changed, output(moved(model, order), batch), rtol=0, atol=1e-5)
    assert torch.equal(output(model, batch), before)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_generation_with_a_cache_gives_the_tokens_of_generation_without(family, order):
    model = tiny_model(family)
    prompt = torch.tensor([[5, 9, 2, 44, 17, 23, 8]])
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}

    with fp.permute_layers(model, order):
        cached = model.generate(prompt, use_cache=True, **options)
        plain = model.generate(prompt, use_cache=False, **options)

    assert torch.equal(cached, plain)
    assert torch.equal(plain, moved(model, order).generate(prompt, use_cache=False, **options))
    indices = [m.layer_idx for layer in resolve(model).layers for m in layer.modules() if hasattr(m, "layer_idx")]
    assert indices == sorted(indices)


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_logits_with_a_cache_are_those_without(family):
    model = tiny_model(family)
    ids = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(0))

    with fp.repeat_layers(model, 1, 3):
        whole = model(ids, use_cache=False).logits
        first = model(ids[:, :7], use_cache=True)
        rest = model(ids[:, 7:], past_key_values=first.past_key_values, use_cache=True)

    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_cache_of_another_order_is_refused():
    model, ids = tiny_model("llama"), torch.randint(3, 100, (1, 6))
    cache = model(ids, use_cache=True).past_key_values

    with pytest.raises(InputError, match="filled with layers in another order"), fp.swap_layers(model, 0, 1):
        model(ids, past_key_values=cache, use_cache=True)


def test_gradients_flow_and_reach_repeated_layers_twice():
    model, batch = tiny_model("bert"), tiny_batches()[0]
    with fp.permute_layers(model, (0, 2, 2)):
        model(**batch).last_hidden_state.square().mean().backward()
    other = moved(model, (0, 2, 2))
    other.zero_grad()
    other(**batch).last_hidden_state.square().mean().backward()

    layers, copies = model.encoder.layer, other.encoder.layer
    assert layers[1].output.dense.weight.grad is None
    expected = copies[1].output.dense.weight.grad + copies[2].output.dense.weight.grad
    torch.testing.assert_close(layers[2].output.dense.weight.grad, expected)


@torch.no_grad()
def test_inside_another_block_places_count():
    model, batch = tiny_model("bert"), tiny_batches()[0]

    with fp.skip_layers(model, [0]), fp.reverse_layers(model):
        inner = output(model, batch)
    with fp.permute_layers(model, (2, 1)):
        assert torch.equal(output(model, batch), inner)


@pytest.mark.parametrize(
    ("block", "order"),
    [
        (lambda m: fp.swap_layers(m, 0, 2), "2,1,0"),
        (lambda m: fp.skip_layers(m, [1]), "0,2"),
        (lambda m: fp.repeat_layers(m, 0, 2), "0,1,0,1,2"),
        (lambda m: fp.reverse_layers(m, 1), "0,2,1"),
        (lambda m: fp.parallel_layers(m, 1, 3), "0,(1+2)"),
    ],
    ids=["swap", "skip", "repeat", "reverse", "parallel"],
)
@torch.no_grad()
def test_each_block_is_an_order(block, order):
    model, batch = tiny_model("gpt2"), tiny_batches()[0]

    with block(model):
        changed = output(model, batch)

    effects = fp.commutativity(model, [batch], [parse(order)], progress=False)
    with fp.permute_layers(model, parse(order)):
        assert torch.equal(output(model, batch), changed)
    own, mine = final(model, batch)[0], None
    with block(model):
        mine = model.transformer.ln_f.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        seen = []
        output(model, batch)
        mine.remove()
    mask = batch["attention_mask"].bool()
    off = float((seen[0] - own)[mask].norm() / own[mask].norm())
    assert effects.rows[1]["relative_l2"] == pytest.approx(off, abs=1e-5)


@torch.no_grad()
def test_a_model_is_put_back_when_the_block_fails():
    model, batch = tiny_model("llama"), tiny_batches()[0]
    before = output(model, batch)

    with pytest.raises(ZeroDivisionError), fp.permute_layers(model, (2, 1, 0)):
        raise ZeroDivisionError
    model.model.layers[1].mlp.forward = lambda state: 1 / 0
    with pytest.raises(ZeroDivisionError), fp.permute_layers(model, (2, 1, 0)):
        output(model, batch)
    del model.model.layers[1].mlp.forward

    assert torch.equal(output(model, batch), before)


@pytest.mark.parametrize("order", [(), (0, 3)])
def test_an_order_that_cannot_run_is_refused_and_nothing_changes(order):
    model = tiny_model("bert")

    with pytest.raises(InputError, match="order"), fp.permute_layers(model, order):
        pass

    assert not any("forward" in vars(module) for module in model.modules())


def test_a_layer_that_is_not_there_is_named():
    model = tiny_model("bert")
    with pytest.raises(InputError, match="there is no layer 7; the model has 0 to 2"):
        fp.swap_layers(model, 0, 7)
    with pytest.raises(InputError, match="there is no layer 8"):
        fp.reverse_layers(model, 1, 9)


def test_layers_are_repeated_once_or_more():
    with pytest.raises(InputError, match="times: must be 1 or more, got 0; skip_layers leaves layers out"):
        fp.repeat_layers(tiny_model("bert"), 0, 2, times=0)


@pytest.mark.parametrize("family", DECODERS)
def test_the_first_call_of_a_process_generates_with_a_cache_too(family, monkeypatch):
    monkeypatch.setattr(stack, "_RETURNS_TUPLE", {})  # what is seen of a class of layers on their first run
    model, prompt = tiny_model(family), torch.tensor([[5, 6, 7, 8]])
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}

    with fp.swap_layers(model, 0, 2):
        cached = model.generate(prompt, **options)
        plain = model.generate(prompt, use_cache=False, **options)

    assert torch.equal(cached, plain)
