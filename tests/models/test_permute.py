"""Layers of a live model in another order, with and without cache, compared with copies whose modules are moved."""

import copy

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.models import forwards
from fastprobe.models.edits import Replaced
from fastprobe.models.resolve import resolve
from fastprobe.orders import parse
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model
from tests.reordering.test_commutativity import final

DECODERS = ["gpt2", "llama", "mistral", "qwen3", "gemma2", "gemma3", "neox"]
ORDERS = [(2, 0, 1), (0, 1, 1, 2, 2), (1,), (2, 2)]


def moved(model, order):
    """Return a copy of a model whose list holds copies of its layers in an order, each with the index of its place."""
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
def test_a_permuted_model_gives_the_output_of_moved_modules(family, order):
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
def test_generation_gives_the_same_tokens_with_and_without_cache(family, order):
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
def test_logits_are_the_same_with_and_without_cache(family):
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


def test_a_repeated_layer_gets_the_sum_of_both_gradients():
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
def test_a_nested_block_counts_places_of_the_outer_order():
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
def test_each_function_runs_its_order(block, order):
    model, batch = tiny_model("gpt2"), tiny_batches()[0]

    with block(model):
        changed = output(model, batch)

    effects = fp.commutativity(model, [batch], [parse(order)], progress=False)
    with fp.permute_layers(model, parse(order)):
        assert torch.equal(output(model, batch), changed)
    baseline, states = final(model, batch)[0], []
    with block(model), model.transformer.ln_f.register_forward_pre_hook(lambda _, args: states.append(args[0])):
        output(model, batch)
    mask = batch["attention_mask"].bool()
    error = float((states[0] - baseline)[mask].norm() / baseline[mask].norm())
    assert effects.rows[1]["relative_l2"] == pytest.approx(error, abs=1e-5)


@torch.no_grad()
def test_a_model_is_restored_if_the_block_fails():
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
def test_an_invalid_order_is_refused_and_nothing_changes(order):
    model = tiny_model("bert")

    with pytest.raises(InputError, match="order"), fp.permute_layers(model, order):
        pass

    assert not any("forward" in vars(module) for module in model.modules())


def test_an_error_names_the_layer_that_the_model_does_not_have():
    model = tiny_model("bert")
    with pytest.raises(InputError, match="there is no layer 7; the model has 0 to 2"):
        fp.swap_layers(model, 0, 7)
    with pytest.raises(InputError, match="there is no layer 8"):
        fp.reverse_layers(model, 1, 9)


def test_layers_cannot_be_repeated_zero_times():
    with pytest.raises(InputError, match="times: must be 1 or more, got 0; skip_layers leaves layers out"):
        fp.repeat_layers(tiny_model("bert"), 0, 2, times=0)


@pytest.mark.parametrize("family", DECODERS)
def test_the_first_generation_of_a_process_uses_its_cache(family, monkeypatch):
    monkeypatch.setattr(forwards, "_EXTRAS", {})  # measured in the first run of a class of layers
    model, prompt = tiny_model(family), torch.tensor([[5, 6, 7, 8]])
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}

    with fp.swap_layers(model, 0, 2):
        cached = model.generate(prompt, **options)
        plain = model.generate(prompt, use_cache=False, **options)

    assert torch.equal(cached, plain)


def test_an_edited_layer_is_refused():
    model = tiny_model("bert")
    edited = Replaced("ffn", 1, "zero", lambda x, stack: torch.zeros_like(x))

    with pytest.raises(InputError, match=r"ffn.1=zero is an edited layer"), fp.permute_layers(model, (0, edited, 2)):
        pass


def test_layers_in_parallel_must_be_single_layers_of_the_outer_block():
    model = tiny_model("bert")

    with (
        fp.parallel_layers(model, 0, 2),
        pytest.raises(InputError, match=r"\(0\+1\) must name single layers of the outer block, got \(0\+1\), 2"),
        fp.parallel_layers(model, 0, 2),
    ):
        pass


def compiled(how, model):
    """Return a model that ``torch.compile`` has compiled in one of the ways that users know."""
    layers = resolve(model).layers
    if how == "model":
        return torch.compile(model, backend="eager")
    if how == "in place":
        model.compile(backend="eager")
    elif how == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    elif how == "each layer in place":
        for layer in layers:
            layer.compile(backend="eager")
    elif how == "each layer":
        stack = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and m[0] is layers[0])
        for index, layer in enumerate(layers):
            stack[index] = torch.compile(layer, backend="eager")
    return model


@pytest.mark.parametrize("how", ["model", "in place", "forward", "each layer in place", "each layer"])
@pytest.mark.parametrize("family", ["bert", "llama"])
@torch.no_grad()
def test_a_compiled_model_runs_the_order(family, how):
    batch = tiny_batches()[0]
    plain = tiny_model(family)
    expected = output(moved(plain, (0, 2, 1)), batch)
    scaled = fp.linearity(plain, [batch], elements=["layer"], progress=False).rows
    effects = fp.commutativity(plain, [batch], [(0, 2, 1)], progress=False).rows

    model = compiled(how, tiny_model(family))
    before = output(model, batch)  # compiled before the order is known
    with fp.permute_layers(model, (0, 2, 1)):
        changed = output(model, batch)
    with fp.skip_scale(model, 0.0):
        cut = output(model, batch)

    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-5)
    with fp.skip_scale(plain, 0.0):
        torch.testing.assert_close(cut, output(plain, batch), rtol=0, atol=1e-5)
    torch.testing.assert_close(output(model, batch), before, rtol=0, atol=1e-5)
    found = fp.linearity(model, [batch], elements=["layer"], progress=False).rows
    assert [row["r2"] for row in found] == pytest.approx([row["r2"] for row in scaled], abs=1e-5)
    found = fp.commutativity(model, [batch], [(0, 2, 1)], progress=False).rows
    assert [row["relative_l2"] for row in found] == pytest.approx([row["relative_l2"] for row in effects], abs=1e-5)
