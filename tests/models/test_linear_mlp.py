"""Affine maps written into the weights of an FFN: saved checkpoints compute the map in plain Transformers."""

import pytest
import torch
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.prune import l1_unstructured
from transformers import AutoModel, BertConfig, BertModel

import fastprobe as fp
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.resolve import resolve
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model
from tests.models.test_bert_variants import CHANGES, variant
from tests.models.wrapped_layers import offloaded
from tests.reordering.test_commutativity import final

PLAIN = ["bert", "bert-mlm", "roberta", "electra", "gpt2", "neox"]


def mlp_of(layer):
    """Return the FFN of a layer as a function."""
    if hasattr(layer, "mlp"):
        return layer.mlp
    return lambda x: layer.output.dense(layer.intermediate(x))


def some_map(width, randn):
    return fp.Solution(randn(width, width), randn(width), width, 1.0, 0.0, 0.0)


@pytest.mark.parametrize("family", PLAIN)
@torch.no_grad()
def test_a_saved_checkpoint_gives_the_error_that_the_ablation_measured(family, tmp_path):
    model, batches = tiny_model(family), tiny_batches(sequences=20)
    damage = fp.ablation(
        model, batches, elements=["mlp"], mode="linear", layers=[[0, 2]], folds=0, alpha=1.0, progress=False
    )
    baselines = [final(model, batch)[0] for batch in batches]

    for layer in (0, 2):
        fp.write_linear_mlp_(model, layer, damage.maps[f"mlp.{layer}"])
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)

    error = norm = 0.0
    for batch, padded in zip(batches, baselines, strict=True):
        mask = batch["attention_mask"].bool()
        state, baseline = final(loaded, batch)[0][mask], padded[mask]
        error, norm = error + float((state - baseline).square().sum()), norm + float(baseline.square().sum())
    assert damage.rows[1]["relative_l2"] == pytest.approx((error / norm) ** 0.5, abs=1e-5)
    assert AutoModel.from_pretrained(tmp_path).config.to_dict() == loaded.config.to_dict()


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"])
@torch.no_grad()
def test_the_map_is_exact_to_rounding_for_small_and_large_x(activation, randn):
    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 50}
    model = BertModel(BertConfig(vocab_size=9, hidden_act=activation, **size)).eval()
    solution = some_map(24, randn)

    fp.write_linear_mlp_(model, 0, solution)

    x = randn(300, 24).float() * torch.logspace(-3, 3, 300)[:, None]
    expected = solution(x.double())
    terms = x.double().abs() @ solution.coef.abs() + solution.intercept.abs()
    assert float(((mlp_of(model.encoder.layer[0])(x) - expected).abs() / terms).max()) < 1e-6


@pytest.mark.parametrize("name", ["gelu-attention", "skips"])
@torch.no_grad()
def test_a_map_is_written_into_a_bert_variant(name, randn):
    model, solution = variant(CHANGES[name]), some_map(32, randn)

    fp.write_linear_mlp_(model, 1, solution)

    x = randn(50, 32).float()
    torch.testing.assert_close(mlp_of(model.bert.encoder.layer[1])(x), solution(x.double()).float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "reason"), [("shared-layers", "its layers share their weights"), ("no-ffn", "it has no FFN")]
)
def test_a_variant_with_a_shared_ffn_or_without_ffn_is_refused(name, reason, randn):
    with pytest.raises(UnsupportedModelError, match=reason):
        fp.write_linear_mlp_(variant(CHANGES[name]), 1, some_map(32, randn))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in PLAIN])
def test_an_ffn_with_a_gate_is_refused(family, randn):
    with pytest.raises(UnsupportedModelError, match="has a gate"):
        fp.write_linear_mlp_(tiny_model(family), 0, some_map(32, randn))


def test_a_refused_map_changes_no_weight(randn):
    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    narrow = BertModel(BertConfig(vocab_size=9, intermediate_size=40, **size))
    tanh = BertModel(BertConfig(vocab_size=9, intermediate_size=48, hidden_act="tanh", **size))
    wide = BertModel(BertConfig(vocab_size=9, intermediate_size=48, **size))
    models = (narrow, tanh, wide)
    before = [model.state_dict()["encoder.layer.0.output.dense.weight"].clone() for model in models]

    with pytest.raises(UnsupportedModelError, match="its FFN is 40 wide, and a map of width 24 needs 48"):
        fp.write_linear_mlp_(narrow, 0, some_map(24, randn))
    with pytest.raises(UnsupportedModelError, match=r"does not satisfy act\(z\) - act\(-z\) = z"):
        fp.write_linear_mlp_(tanh, 0, some_map(24, randn))
    with pytest.raises(InputError, match="there is no layer 1; the model has 0 to 0"):
        fp.write_linear_mlp_(tanh, 1, some_map(24, randn))
    with pytest.raises(InputError, match=r"the map must be \(24, 24\), the width of the FFN, got \(23, 23\)"):
        fp.write_linear_mlp_(wide, 0, some_map(23, randn))

    for model, weight in zip(models, before, strict=True):
        assert torch.equal(resolve(model).layers[0].output.dense.weight, weight)


class Adapter(torch.nn.Module):
    """Low-rank adapter around a linear layer, with the names of PEFT."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(base_layer.in_features, 2, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(2, base_layer.out_features, bias=False)})

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Packed(torch.nn.Linear):
    """Linear layer whose weight holds two numbers of 4 bits in a byte."""

    def __init__(self, base):
        super().__init__(base.in_features, base.out_features)
        self.weight = torch.nn.Parameter(torch.zeros(base.weight.numel() // 2, 1, dtype=torch.uint8), False)
        self.unpacked = [base]

    def forward(self, x):
        return self.unpacked[0](x)


def with_adapter(owner):
    owner.dense = Adapter(owner.dense)


def with_packed_weights(owner):
    owner.dense = Packed(owner.dense)


CHANGED_FFNS = {
    "adapter": (with_adapter, "dense, a Adapter"),
    "packed": (with_packed_weights, "dense, a Packed"),
    "weight norm": (lambda owner: weight_norm(owner.dense), "dense, a ParametrizedLinear"),
    "old weight norm": (lambda owner: torch.nn.utils.weight_norm(owner.dense), "dense, a Linear with bias, weight_g"),
    "pruned": (
        lambda owner: l1_unstructured(owner.dense, "weight", 0.5),
        "dense, a Linear with bias, weight_orig",
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("where", ["intermediate", "output"])
@pytest.mark.parametrize("change", CHANGED_FFNS)
def test_a_changed_ffn_is_refused_by_what_was_seen(change, where, randn):
    model = tiny_model("bert")
    edit, seen = CHANGED_FFNS[change]
    edit(getattr(resolve(model).layers[1], where))

    with pytest.raises(UnsupportedModelError, match=f"its FFN has {where}.{seen}.*; merge or remove") as error:
        fp.write_linear_mlp_(model, 1, some_map(32, randn))

    assert "gate" not in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_ffn_of_three_matrices_is_refused_by_their_shapes(randn):
    model = tiny_model("bert")
    resolve(model).layers[0].intermediate.more = torch.nn.Linear(64, 64)

    with pytest.raises(UnsupportedModelError, match=r"must be one matrix \(32, 64\) before output.dense, but there is"):
        fp.write_linear_mlp_(model, 0, some_map(32, randn))


def copied(module):
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    module.forward = lambda x: torch.nn.functional.linear(x, weight, bias)


@pytest.mark.parametrize("where", ["intermediate", "output"])
def test_a_map_that_would_not_run_is_refused_and_changes_no_weight(where, randn):
    model = tiny_model("bert")
    layer = resolve(model).layers[1]
    copied(getattr(layer, where).dense)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with pytest.raises(UnsupportedModelError, match="a Linear of its FFN does not multiply by its own weight"):
        fp.write_linear_mlp_(model, 1, some_map(32, randn))

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_a_map_runs_at_once_under_autocast(randn):
    model, batch = tiny_model("bert"), tiny_batches()[0]
    solution = some_map(32, randn)
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch)
        fp.write_linear_mlp_(model, 1, solution)
        found = model(**batch)[0]
        torch.clear_autocast_cache()
        assert torch.equal(found, model(**batch)[0])


def tied_to_a_head(model):
    model.cls.predictions.transform.dense.weight = torch.nn.Parameter(
        resolve(model).layers[1].intermediate.dense.weight[:32]
    )


def tied_to_a_layer(model):
    layers = resolve(model).layers
    layers[0].output.dense.bias = layers[1].output.dense.bias


def fused(model):
    layer = resolve(model).layers[1]
    both = torch.cat([layer.intermediate.dense.weight, layer.output.dense.weight.mT]).detach()
    layer.intermediate.dense.weight = torch.nn.Parameter(both[:64])
    layer.intermediate.register_buffer("both", both, persistent=False)


@pytest.mark.parametrize(
    ("tie", "message"),
    [
        (tied_to_a_head, "cls.predictions.transform.dense.weight shares its weights with this FFN"),
        (tied_to_a_layer, "its layers share their weights"),
        (fused, "its layers share their weights"),
    ],
)
def test_a_map_that_would_change_another_weight_is_refused(tie, message, randn):
    model = tiny_model("bert-mlm")
    tie(model)

    with pytest.raises(UnsupportedModelError, match=message):
        fp.write_linear_mlp_(model, 1, some_map(32, randn))


def test_a_map_for_offloaded_weights_is_refused(randn):
    with pytest.raises(UnsupportedModelError, match=r"whose weight is offloaded.*without quantisation"):
        fp.write_linear_mlp_(offloaded(tiny_model("bert")), 1, some_map(32, randn))
