"""Models whose weights are not plain tensors in memory: offloaded by Accelerate, quantised, or on ``meta``."""

import tempfile

import accelerate
import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.calling import device_of
from fastprobe.models.masked_head import MaskedHead
from fastprobe.models.unpadded.refusals import encoder_refusal
from fastprobe.ops import products
from fastprobe.testing.tiny_models import tiny_batches, tiny_model
from tests.test_odd_batches import VERBS, scores

BATCHES = tiny_batches()
CPU = torch.device("cpu")


def partly_on_disk(model):
    """Keep one layer on the disk, and all other modules in memory."""
    names = {name: module for name, module in model.named_modules() if name}
    (layers,) = (name for name, module in names.items() if isinstance(module, torch.nn.ModuleList))
    around = [name for name in names if f"{layers}.".startswith(f"{name}.")]
    parts = [name for name in names if name not in around and name.rpartition(".")[0] in ("", *around)]
    device_map = {name: "disk" if name == f"{layers}.1" else "cpu" for name in parts}
    return accelerate.dispatch_model(model, device_map, main_device="cpu", offload_dir=tempfile.mkdtemp())


OFFLOADS = {
    "cpu_offload": lambda model: accelerate.cpu_offload(model, execution_device=CPU),
    "disk_offload": lambda model: accelerate.disk_offload(model, tempfile.mkdtemp(), execution_device=CPU),
    "dispatch_model": partly_on_disk,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("family", ["bert-mlm", "llama"])
@pytest.mark.parametrize("offload", OFFLOADS)
def test_an_offloaded_model_gives_the_scores_of_the_model(offload, family, verb):
    model = OFFLOADS[offload](tiny_model(family))

    assert any(parameter.is_meta for parameter in model.parameters())
    torch.testing.assert_close(
        scores(verb, model, BATCHES), scores(verb, tiny_model(family), BATCHES), atol=1e-4, rtol=1e-3, equal_nan=True
    )


def test_offloaded_weights_cannot_be_changed():
    model = OFFLOADS["cpu_offload"](tiny_model("bert"))

    with pytest.raises(UnsupportedModelError, match=r"random_init: the weight intermediate.dense.weight is offloaded"):
        fp.ablation(model, BATCHES, elements=["mlp"], mode="random_init", progress=False)
    with pytest.raises(UnsupportedModelError, match=r"intermediate.dense, whose weight is offloaded"):
        fp.write_linear_mlp_(model, 0, None)


def test_a_model_on_meta_is_refused_in_one_line():
    model = tiny_model("bert").to("meta")

    for verb in VERBS.values():
        with pytest.raises(InputError, match="model: the weights of BertModel are on meta, without numbers"):
            verb(model, BATCHES)


def test_the_device_of_an_offloaded_model_is_that_of_the_first_hook_that_names_one():
    model = tiny_model("bert").to("meta")
    first, second = accelerate.hooks.ModelHook(), accelerate.hooks.AlignDevicesHook(execution_device="cpu")
    accelerate.hooks.add_hook_to_module(model.encoder, accelerate.hooks.SequentialHook(first, second))

    assert device_of(model) == CPU


class Packed(torch.Tensor):
    """Weight in 8 bits that looks like a float32 tensor, as those of torchao."""

    @staticmethod
    def __new__(cls, weight):
        return torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)

    def __init__(self, weight):
        self.scale = weight.abs().max() / 127
        self.numbers = (weight / self.scale).round().to(torch.int8)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return args[0]
        whole = [one.numbers * one.scale if isinstance(one, Packed) else one for one in args]
        return function(*whole, **(kwargs or {}))


def packed(model):
    """Replace the weights of linear modules by packed ones."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.weight = torch.nn.Parameter(Packed(module.weight.detach()), requires_grad=False)
    return model


def rounded(model):
    """Round the weights of linear modules to the values that packed ones have."""
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            one = Packed(module.weight.detach())
            module.weight = torch.nn.Parameter(one.numbers * one.scale, requires_grad=False)
    return model


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("family", ["bert-mlm", "llama"])
def test_a_quantised_model_gives_the_scores_of_its_values(family, verb, monkeypatch):
    monkeypatch.setattr(products, "_takes_onednn", lambda: True)
    model, plain = packed(tiny_model(family)), rounded(tiny_model(family))

    torch.testing.assert_close(
        scores(verb, model, BATCHES), scores(verb, plain, BATCHES), atol=1e-4, rtol=1e-3, equal_nan=True
    )


def test_quantised_weights_are_refused_where_they_are_read_or_written():
    model = packed(tiny_model("bert-mlm"))

    assert "weights of class Packed" in encoder_refusal(model, BATCHES[0])
    assert MaskedHead.of(model) is None
    with pytest.raises(UnsupportedModelError, match="is a Packed, and other values would not reach it"):
        fp.ablation(model, BATCHES, elements=["mlp"], mode="random_init", progress=False)
    with pytest.raises(UnsupportedModelError, match=r"intermediate.dense, whose weight is a Packed"):
        fp.write_linear_mlp_(model, 0, None)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_dynamically_quantised_model_runs(family, verb):
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    with torch.random.fork_rng():
        quantised = torch.ao.quantization.quantize_dynamic(tiny_model(family), {torch.nn.Linear}, dtype=torch.qint8)

    assert scores(verb, quantised, BATCHES).isfinite().any()
