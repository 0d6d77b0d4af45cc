"""Toy models of the catalogue: every verb works or raises an error of fastprobe, and numbers equal references.

CI runs a sample of model types. ``make catalogue`` runs all of the installed Transformers.
"""

import copy
import os

import pytest
import torch

import fastprobe as fp
from fastprobe.models.calling import first_input, first_tensor
from fastprobe.models.resolve import resolve
from fastprobe.testing.catalogue import NotBuiltError, text_types, toy_model
from tests.catalogue.outcomes import batches_of, outcomes

SAMPLE = (
    "bart",
    "canine",
    "deberta",
    "falcon",
    "gemma3",
    "longformer",
    "mixtral",
    "mobilebert",
    "nemotron_h",
    "openai-gpt",
    "rwkv",
    "xlnet",
)
TYPES = text_types() if os.environ.get("FASTPROBE_CATALOGUE") == "all" else SAMPLE

MODULES = {
    "bloom": (
        "self_attention",
        "self_attention.dense",
        "mlp",
        "mlp.dense_4h_to_h",
    ),  # both also add the skip connection
    "cohere": ("self_attn", "self_attn", "mlp", "mlp"),
    "deepseek_v3": ("self_attn", "self_attn", "mlp", "mlp"),
    "falcon": ("self_attention", "self_attention", "mlp", "mlp"),
    "gptj": ("attn", "attn", "mlp", "mlp"),
    "granite": ("self_attn", "self_attn", "mlp", "mlp"),
    "mixtral": ("self_attn", "self_attn", "mlp", "mlp"),
    "mpt": ("attn", "attn", "ffn", "ffn.down_proj"),
    "olmo2": ("self_attn", "self_attn", "mlp", "mlp"),
    "opt": ("self_attn", "self_attn", "fc1", "fc2"),
    "phi": ("self_attn", "self_attn", "mlp", "mlp"),
    "qwen2_moe": ("self_attn", "self_attn", "mlp", "mlp"),
    "starcoder2": ("self_attn", "self_attn", "mlp", "mlp"),
    "t5": ("layer.0.SelfAttention", "layer.0.SelfAttention", "layer.1.DenseReluDense", "layer.1.DenseReluDense"),
}
"""Model type -> modules whose input and output are those of the attention, and of the FFN, by the names in its code."""


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model_type", TYPES)
def test_every_verb_works_or_raises_an_error_of_fastprobe(model_type, side):
    try:
        model = toy_model(model_type)
    except NotBuiltError as reason:
        pytest.xfail(str(reason))

    outcomes(model, batches_of(model, side))  # raises if a verb raises anything else


@pytest.mark.parametrize("model_type", MODULES)
@torch.no_grad()
def test_rows_equal_fits_on_what_hooks_on_the_modules_of_the_family_read(model_type):
    model = toy_model(model_type)
    batches = batches_of(model)
    points = resolve(model)
    part, layer = points.part_of(model), points.layers[1]
    into, out_of, into_ffn, out_of_ffn = map(layer.get_submodule, MODULES[model_type])
    ends = {"layer": (layer, layer), "attn": (into, out_of), "mlp": (into_ffn, out_of_ffn)}
    sides: dict[tuple[str, int], list[torch.Tensor]] = {(name, side): [] for name in ends for side in (0, 1)}

    for batch in batches:
        mask, handles = batch["attention_mask"].bool(), []

        def keep(key, tensor, mask=mask):
            sides[key].append(tensor.view(*mask.shape, -1)[mask].clone())

        for name, (first, last) in ends.items():

            def read_x(_, args, kwargs, name=name, keep=keep):
                keep((name, 0), first_input(args, kwargs))

            def read_y(_, args, result, name=name, keep=keep):
                keep((name, 1), first_tensor(result))

            handles += [first.register_forward_pre_hook(read_x, with_kwargs=True), last.register_forward_hook(read_y)]
        part(**batch)
        for handle in handles:
            handle.remove()
    scan = fp.linearity(model, batches, elements=[*ends], layers=[1], folds=0, score_sequences=0, progress=False)

    for row in scan.rows:
        x, y = (torch.cat(sides[row["element"], side]).double() for side in (0, 1))
        x, y = x - x.mean(0), y - y.mean(0)
        residual = y - x @ torch.linalg.lstsq(x, y, rcond=1e-6, driver="gelsd").solution
        assert row["r2"] == pytest.approx(1 - float(residual.square().sum() / y.square().sum()), abs=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("model_type", [name for name in MODULES if name != "t5"])
@torch.no_grad()
def test_orders_equal_models_whose_modules_are_moved(model_type, side):
    model = toy_model(model_type)
    batches, order = batches_of(model, side), [2, 0, 1]
    expected = {}
    for name, chosen in (("baseline", range(3)), ("moved", order)):
        other = copy.deepcopy(model)
        lists = [m for m in other.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3]
        layers = next(found for found in lists if type(found[0]) is type(resolve(model).layers[0]))
        for place, layer in enumerate([layers[layer] for layer in chosen]):
            layers[place] = layer
        states = []
        layers[2].register_forward_hook(lambda *call, states=states: states.append(first_tensor(call[2])))
        for batch in batches:
            other(**batch, use_cache=False)
        expected[name] = states
    error = norm = 0.0
    for batch, moved, baseline in zip(batches, expected["moved"], expected["baseline"], strict=True):
        mask = batch["attention_mask"].bool()
        error += float((moved - baseline)[mask].double().square().sum())
        norm += float(baseline[mask].double().square().sum())

    effects = fp.commutativity(model, batches, [order], progress=False)

    assert effects.rows[1]["relative_l2"] == pytest.approx((error / norm) ** 0.5, abs=1e-5)
