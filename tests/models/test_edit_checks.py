"""Edits of layers reach what the layers compute and nothing else, or they are refused."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import fastprobe as fp
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.element_weights import initial_weights
from fastprobe.models.plain_matrices import is_matrix, is_product
from fastprobe.models.resolve import resolve
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model
from tests.models.wrapped_layers import WRAPPED, offloaded
from tests.reordering.test_commutativity import final

pytestmark = pytest.mark.filterwarnings("ignore")
UNITS = {"attn_proj": "attention.output.dense", "mlp": "output.dense"}


def damage(model, batches, element, mode, layer=1):
    return fp.ablation(model, batches, elements=[element], mode=mode, layers=[[layer]], progress=False).rows[1]


@torch.no_grad()
def states_of(model, batches):
    """Return the final states ``(tokens, width)`` of a model."""
    return torch.cat([final(model, batch)[0][batch["attention_mask"].bool()].double() for batch in batches])


def distance(baseline, states):
    return float((states - baseline).norm() / baseline.norm())


@pytest.mark.parametrize("element", ["attn", "mlp", "layer"])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_random_weights_that_would_not_run_are_refused(wrapper, element):
    model = WRAPPED[wrapper](tiny_model("bert"))

    with pytest.raises(UnsupportedModelError, match=f"{element} of layer 1 cannot be edited: .*; merge") as error:
        damage(model, tiny_batches(sequences=4), element, "random_init")

    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("element", UNITS)
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_an_element_of_a_wrapped_layer_is_removed(wrapper, element):
    model, batches = WRAPPED[wrapper](tiny_model("bert")), tiny_batches(sequences=4)
    module = resolve(model).layers[1].get_submodule(UNITS[element])

    row = damage(model, batches, element, "zero")

    before = states_of(model, batches)
    module.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
    assert row["relative_l2"] == pytest.approx(distance(before, states_of(model, batches)), rel=1e-4)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("element", ["attn", "mlp"])
def test_random_weights_run_under_autocast(family, element):
    model, batches = tiny_model(family), tiny_batches(sequences=4)
    plain = damage(model, batches, element, "random_init")["relative_l2"]

    with torch.autocast("cpu", torch.bfloat16):
        model(**batches[0])  # fills the cache of casts
        found = damage(model, batches, element, "random_init")["relative_l2"]

    assert found == pytest.approx(plain, rel=0.05)


@pytest.mark.parametrize("mode", ["zero", "random_init"])
def test_an_ablation_of_a_model_in_another_order_is_refused(mode):
    model = tiny_model("bert")
    with fp.reverse_layers(model), pytest.raises(InputError, match="leave the block of permute_layers"):
        damage(model, tiny_batches(sequences=4), "mlp", mode)


@torch.no_grad()
def test_random_weights_of_offloaded_modules_are_refused():
    model = offloaded(tiny_model("bert"))
    points = resolve(model)
    with pytest.raises(UnsupportedModelError, match=r"intermediate.dense.weight is offloaded.*without quantisation"):
        initial_weights(points.layers[1], points.layouts[1], "mlp", (0, 1))


def test_random_weights_beside_a_fused_copy_are_refused():
    model = tiny_model("bert")
    attention = resolve(model).layers[1].attention.self
    matrices = [getattr(attention, name).weight.detach().clone() for name in ("query", "key", "value")]
    fused = torch.cat(matrices)

    def forward(hidden_states, attention_mask=None, **_):
        heads = (*hidden_states.shape[:-1], 4, 8)
        q, k, v = (part.view(heads).transpose(1, 2) for part in (hidden_states @ fused.mT).chunk(3, -1))
        out = nn.functional.scaled_dot_product_attention(q, k, v, attention_mask)
        return out.transpose(1, 2).flatten(2), None

    attention.forward = forward

    with pytest.raises(UnsupportedModelError, match="has no effect on the layer, which may run a copy of it"):
        damage(model, tiny_batches(sequences=4), "attn_heads", "random_init")


@pytest.mark.parametrize("element", ["attn", "mlp"])
def test_random_weights_change_only_the_modules_of_the_element(element):
    model, batches = tiny_model("bert"), tiny_batches(sequences=4)
    layers = resolve(model).layers
    layers[1].attention.self.key.weight = layers[1].attention.self.query.weight
    layers[2].intermediate.dense.weight = layers[1].intermediate.dense.weight
    layers[1].attention.output.dense.weight = nn.Parameter(layers[1].intermediate.dense.weight[:32])
    changed = copy.deepcopy(model)
    layer = resolve(changed).layers[1]
    for path, value in initial_weights(layer, resolve(changed).layouts[1], element, (0, 1)).items():
        owner, _, name = path.rpartition(".")
        setattr(layer.get_submodule(owner), name, nn.Parameter(value))

    row = damage(model, batches, element, "random_init")

    assert row["relative_l2"] == pytest.approx(
        distance(states_of(model, batches), states_of(changed, batches)), rel=1e-4
    )


@pytest.mark.parametrize("times", [2, 3])
def test_an_element_that_runs_several_times_is_refused(times):
    model = tiny_model("llama")
    layer = resolve(model).layers[1]
    forward = layer.mlp.forward

    def again(x):
        for _ in range(times - 1):
            layer.mlp.down_proj(torch.zeros(1, 1, 64))
        return forward(x)

    layer.mlp.forward = again

    with pytest.raises(UnsupportedModelError, match=f"are computed 1 and {times} times in one run of the layer"):
        damage(model, tiny_batches(sequences=4), "mlp_act", "mean")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cast", [False, True])
def test_a_plain_model_is_never_refused(family, cast):
    if cast and family == "neox":  # its identities fail under autocast
        family = "gpt2"
    context = torch.autocast("cpu", torch.bfloat16) if cast else nullcontext()
    model, modes = tiny_model(family), ["zero", "mean", "random_init"]
    elements = [name for name in ("layer", "attention", "ffn", "attn", "mlp") if name in resolve(model).elements]
    with context:
        rows = fp.ablation(
            model, tiny_batches(sequences=4), elements=elements, mode=modes, layers=[1], progress=False
        ).rows

    assert all(row["relative_l2"] > 0.01 for row in rows[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_matrices_are_told_from_norms_and_activations(dtype, randn):
    x = randn(8, 16, dtype=torch.float32).to(dtype)
    linear = nn.Linear(16, 16).to(dtype)
    others = [
        nn.LayerNorm(16),
        nn.RMSNorm(16),
        nn.GELU(),
        nn.SiLU(),
        nn.ReLU(),
        nn.Tanh(),
        nn.Identity(),
        nn.Dropout(0),
    ]

    with torch.no_grad():
        assert is_matrix(linear, x)
        assert is_product(linear, x, linear.weight, linear.bias)
        assert not is_product(linear, x, 1.1 * linear.weight, linear.bias)
        assert not any(is_matrix(module.to(dtype), x) for module in others)
