"""A live model in another order: which calls hooks see, what the model returns, and what is refused."""

import contextlib
import types

import accelerate
import pytest
import torch
import transformers

import fastprobe as fp
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models import forwards
from fastprobe.models.resolve import resolve
from fastprobe.orders import parse
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model
from tests.models.test_memoryless import MEMORIES
from tests.models.test_permute import DECODERS, moved, output

ORDER = (2, 0, 1, 1)
BATCH = tiny_batches()[0]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hooks_see_every_run_of_a_layer_in_the_executed_order(family, monkeypatch):
    monkeypatch.setattr(forwards, "_EXTRAS", {})  # the first call of a process runs a layer once more
    model = tiny_model(family)
    seen, before, inner = [], [], []
    for index, layer in enumerate(resolve(model).layers):
        layer.register_forward_pre_hook(lambda _, args, index=index: before.append((index, args[0])))
        layer.register_forward_hook(lambda _, args, out, index=index: seen.append((index, args[0])))
        next(layer.children()).register_forward_hook(lambda *_, index=index: inner.append(index))

    with fp.permute_layers(model, ORDER):
        states = model(**BATCH, output_hidden_states=True).hidden_states

    assert [index for index, _ in before] == [index for index, _ in seen] == inner == list(ORDER)
    for (_, given), (_, same), state in zip(before, seen, states, strict=False):
        assert torch.equal(given, state)
        assert torch.equal(same, state)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_hook_that_changes_states_acts_once_a_run(family):
    model = tiny_model(family)
    for layer, factor in zip(resolve(model).layers, (2.0, 3.0, 5.0), strict=True):
        layer.register_forward_pre_hook(lambda _, args, factor=factor: (args[0] / factor, *args[1:]))
        layer.register_forward_hook(lambda _, args, out, f=factor: out * f if torch.is_tensor(out) else (out[0] * f,))
    expected = output(moved(model, ORDER), BATCH)

    with fp.permute_layers(model, ORDER):
        found = output(model, BATCH)

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    row = fp.commutativity(model, [BATCH], [ORDER], progress=False).rows[1]
    assert row["relative_l2"] > 0.01


def deberta():
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    return transformers.DebertaModel(transformers.DebertaConfig(**size, vocab_size=100)).eval()


MODELS = {family: lambda family=family: tiny_model(family) for family in FAMILIES} | {"deberta": deberta}


@pytest.mark.parametrize("order", [ORDER, (1,), (2, 1, 0)], ids=str)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_hidden_states_are_those_of_moved_modules(make, order):
    model = make()
    expected = moved(model, order)(**BATCH, output_hidden_states=True).hidden_states

    with fp.permute_layers(model, order):
        found = model(**BATCH, output_hidden_states=True).hidden_states
        model.config.output_hidden_states = True
        again = model(**BATCH).hidden_states

    for one in (found, again):
        assert len(one) == len(order) + 1
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_hidden_states_of_layers_in_parallel_are_one_a_step():
    model, states = tiny_model("bert"), {}

    for order in ("(0+1),2", "0,2", "1,2"):
        with fp.permute_layers(model, parse(order)):
            states[order] = model(**BATCH, output_hidden_states=True).hidden_states

    assert [len(found) for found in states.values()] == [3, 3, 3]
    torch.testing.assert_close(states["(0+1),2"][1], (states["0,2"][1] + states["1,2"][1]) / 2)


class Loop(torch.nn.Module):
    """A model whose forward pass calls its layers as it likes.

    Args:
        model: a BERT, whose embeddings and layers are used.
        run: from the layers and the first state to the last one.
    """

    def __init__(self, model, run):
        super().__init__()
        self.config, self.embeddings, self.encoder, self.run = model.config, model.embeddings, model.encoder, run

    def forward(self, input_ids, attention_mask):
        return (self.run(self.encoder.layer, self.embeddings(input_ids=input_ids)),)


def in_turn(numbers):
    def run(layers, state):
        for number in numbers:
            out = layers[number](state)
            state = out if torch.is_tensor(out) else out[0]
        return state

    return run


def between(layers, state):
    return in_turn((2,))(layers, 2 * in_turn((0, 1))(layers, state))


WRONG = {
    "exits early": (in_turn((0, 1)), "Loop: layer 2 never ran in its forward pass; turn off"),
    "exits after the first layer": (in_turn((0,)), "Loop: layers 1, 2 never ran"),
    "skips a layer": (in_turn((0, 2)), "Loop: layer 1 never ran"),
    "skips the first layer": (in_turn((1, 2)), "Loop: layer 0 never ran"),
    "skips all layers": (in_turn(()), "Loop: layers 0, 1, 2 never ran"),
    "repeats a layer": (in_turn((0, 1, 1, 2)), "layer 1 more than once"),
    "repeats the first layer": (in_turn((0, 0, 1, 2)), "layer 0 more than once"),
    "repeats the last layer": (in_turn((0, 1, 2, 2)), "layers 0, 1 never ran"),
    "runs them in another order": (in_turn((1, 0, 2)), "called its layers in the order 1, 0, 2"),
    "changes the state between layers": (between, "changes the hidden states before layer 2"),
}


@pytest.mark.parametrize(("run", "message"), WRONG.values(), ids=WRONG)
@torch.no_grad()
def test_a_model_that_does_not_call_each_layer_once_in_turn_is_refused(run, message):
    model = Loop(tiny_model("bert"), run)
    before = model(**BATCH)[0]

    refusal = f"{message}|no stack of layers was found"
    with pytest.raises(UnsupportedModelError, match=refusal), fp.permute_layers(model, (2, 1, 0)):
        model(**BATCH)

    assert torch.equal(model(**BATCH)[0], before)


@torch.no_grad()
def test_a_loop_that_runs_all_layers_twice_runs_the_order_twice():
    model = Loop(tiny_model("bert"), in_turn((0, 1, 2, 0, 1, 2)))
    expected = Loop(tiny_model("bert"), in_turn((2, 1, 0, 2, 1, 0)))(**BATCH)[0]

    with fp.permute_layers(model, (2, 1, 0)):
        found = model(**BATCH)[0]

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
@pytest.mark.parametrize("verb", ["live", "linearity", "commutativity", "commutator", "ablation", "probe"])
def test_layers_beyond_those_that_the_configuration_runs_are_named(family, verb):
    model = tiny_model(family)
    model.config.num_hidden_layers = 2

    with pytest.raises(UnsupportedModelError, match="layers: 2 of its 3 modules ran; turn off what skips"):
        VERBS[verb](model)


def live(model):
    with fp.permute_layers(model, (2, 1, 0)):
        model(**BATCH)


VERBS = {
    "live": live,
    "linearity": lambda model: fp.linearity(model, [BATCH], progress=False),
    "commutativity": lambda model: fp.commutativity(model, [BATCH], [(0, 0, 1, 2)], progress=False),
    "commutator": lambda model: fp.commutator(model, [BATCH], progress=False),
    "ablation": lambda model: fp.ablation(model, [BATCH], progress=False),
    "probe": lambda model: fp.probe(model, [BATCH], progress=False),
}
BLOCKS = {
    "permute": lambda model: fp.permute_layers(model, ORDER),
    "skip": lambda model: fp.skip_layers(model, [1]),
    "repeat": lambda model: fp.repeat_layers(model, 0, 1),
    "of the body": lambda model: fp.swap_layers(model.transformer, 0, 1),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("verb", [*VERBS.values()][1:], ids=[*VERBS][1:])
def test_no_verb_counts_layers_inside_of_a_block(verb, block):
    model = tiny_model("gpt2")

    with block(model), pytest.raises(InputError, match="model: its layers run in another order now"):
        verb(model)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("memory", MEMORIES, ids=lambda memory: memory.__name__)
def test_a_layer_that_keeps_something_is_refused_by_name(family, memory):
    model = tiny_model(family)
    memory(resolve(model).layers)

    with (
        pytest.raises(UnsupportedModelError, match="layer 1 gives another output"),
        fp.permute_layers(model, (2, 1, 0)),
    ):
        model(**BATCH)


def test_the_check_of_the_first_call_changes_nothing(monkeypatch):
    monkeypatch.setattr(forwards, "_EXTRAS", {})
    model = tiny_model("bert").train()
    other = moved(model, (2, 0, 1))
    results = []
    for one in (model, other):
        torch.manual_seed(0)
        with fp.permute_layers(model, (2, 0, 1)) if one is model else contextlib.nullcontext():
            results.append([one(**BATCH).last_hidden_state for _ in range(2)])

    assert all(module.training for module in model.modules())
    torch.testing.assert_close(*results, rtol=0, atol=1e-5)


def test_a_layer_runs_as_it_is_outside_of_a_forward_pass():
    model = tiny_model("bert")
    layer, state = model.encoder.layer[1], torch.randn(2, 5, 32)
    expected, whole = layer(state), output(model, BATCH)

    with fp.permute_layers(model, ORDER):
        found = layer(state)
        direct = model.forward(**BATCH)[0]
        called = model(**BATCH)[0]

    assert torch.equal(found, expected)
    assert torch.equal(direct, called)
    assert not torch.equal(direct, whole)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_gradient_checkpointing_gives_the_gradients_of_moved_modules(family, reentrant, inside):
    model = tiny_model(family)
    other = moved(model, (2, 0, 1))
    for one in (model, other):
        one.train()
        for module in one.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for name in ("attention_dropout", "dropout_prob"):
                if hasattr(module, name):
                    setattr(module, name, 0.0)
        one.config._attn_implementation = "eager"
        one.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        one.enable_input_require_grads()

    with fp.permute_layers(model, (2, 0, 1)):
        loss = output(model, BATCH).square().mean()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    output(other, BATCH).square().mean().backward()

    for layer, copied in zip((2, 0, 1), resolve(other).layers, strict=True):
        for found, expected in zip(resolve(model).layers[layer].parameters(), copied.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_checkpoints_around_the_calls_of_layers_are_refused():
    model = Loop(tiny_model("bert"), in_turn((0, 1, 2))).train()
    model.gradient_checkpointing = True
    resolve(model)
    for layer in model.encoder.layer:  # as in Transformers 4
        layer.__class__ = type("Checkpointed", (type(layer),), {"__call__": lambda self, *args: self.forward(*args)})

    with fp.permute_layers(model, (2, 1, 0)), pytest.raises(UnsupportedModelError, match=r"checkpointing_disable\(\)"):
        model(**BATCH)


@pytest.mark.parametrize("how", ["cpu_offload", "disk_offload"])
@pytest.mark.parametrize("family", ["bert", "llama"])
@torch.no_grad()
def test_hooks_of_accelerate_bring_the_weights_of_every_run(family, how, tmp_path):
    model = tiny_model(family)
    expected = output(moved(model, ORDER), BATCH)
    options = {"execution_device": torch.device("cpu")} | (
        {"offload_dir": str(tmp_path)} if how == "disk_offload" else {}
    )
    getattr(accelerate, how)(model, **options)

    with fp.permute_layers(model, ORDER):
        found = output(model, BATCH)

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


PROMPT = torch.tensor([[5, 9, 2, 44, 17, 23, 8]])
GENERATION = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
CACHES = {
    "dynamic": lambda config: transformers.DynamicCache(config=config),
    "dynamic without configuration": lambda config: transformers.DynamicCache(),
    "static": lambda config: transformers.StaticCache(config=config, max_cache_len=32),
}


@pytest.mark.parametrize("order", [ORDER, (1,)], ids=str)
@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES)
@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_every_cache_gives_the_tokens_of_moved_modules(family, cache, order, monkeypatch):
    monkeypatch.setattr(forwards, "_EXTRAS", {})
    model = tiny_model(family)
    expected = moved(model, order).generate(PROMPT, use_cache=False, **GENERATION)

    with fp.permute_layers(model, order):
        filled = cache(model.config)
        found = model.generate(PROMPT, past_key_values=filled, **GENERATION)

    assert torch.equal(found, expected)
    assert len(filled.layers) == len(order)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 2}, {"cache_implementation": "static"}]
)
@torch.no_grad()
def test_ways_of_generation_give_the_tokens_of_moved_modules(options):
    model = tiny_model("gemma3")
    beams = {key: value for key, value in options.items() if key == "num_beams"}
    expected = moved(model, ORDER).generate(PROMPT, use_cache=False, **GENERATION, **beams)

    with fp.permute_layers(model, ORDER):
        found = model.generate(PROMPT, **GENERATION, **options)

    assert torch.equal(found, expected)


@torch.no_grad()
def test_halves_of_layers_generate_the_same_tokens_with_and_without_cache(monkeypatch):
    monkeypatch.setattr("fastprobe.models.sublayers._RETURNS_TENSOR", {})
    model = tiny_model("llama")

    with fp.permute_layers(model, parse("ffn.0,attention.1,2,(0+1)")):
        cached = model.generate(PROMPT, **GENERATION)
        plain = model.generate(PROMPT, use_cache=False, **GENERATION)

    assert torch.equal(cached, plain)


@torch.no_grad()
def test_caches_that_do_not_fit_are_refused():
    model = tiny_model("llama")
    other = tiny_model("llama").config
    other.num_hidden_layers = 5
    other.layer_types = None
    sizes = {"get_mask_sizes": lambda length, _: (length, 0), "get_query_offset": lambda _: 0}
    unknown = types.SimpleNamespace(get_seq_length=lambda *_: 0, **sizes)

    with fp.permute_layers(model, ORDER):
        with pytest.raises(InputError, match="a DynamicCache of 5 layers does not fit a model of 3"):
            model(PROMPT, past_key_values=transformers.DynamicCache(config=other))
        with pytest.raises(InputError, match="cannot use a SimpleNamespace; pass use_cache=False"):
            model(PROMPT, past_key_values=unknown)
        cache = model(PROMPT, use_cache=True).past_key_values
    with fp.permute_layers(model, (1, 0)), pytest.raises(InputError, match="filled with layers in another order"):
        model(PROMPT, past_key_values=cache)
