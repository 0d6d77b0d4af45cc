"""BERT variants, compared with BERT and with formulas, and loaded by another process."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM

import fastprobe as fp
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.bert_variants import BertVariantConfig, BertVariantForMaskedLM, LinearSelfAttention
from fastprobe.models.identities import check_points
from fastprobe.models.resolve import resolve
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

CHANGES = {
    "bert": {},
    "no-ffn": {"ffn": "none"},
    "gelu-attention": {"attention_gelu": True},
    "linear": {"ffn": "linear", "attention": "linear"},
    "skips": {"no_skip_layers": (1,), "weighted_skip": True},
    "shared-layers": {"shared_layers": True},
}


def variant(changes, dtype=torch.float32):
    """Return a random BERT variant that takes from the tiny BERT the weights that both have."""
    bert = tiny_model("bert-mlm")
    size = {key: value for key, value in bert.config.to_dict().items() if key not in ("model_type", "architectures")}
    model = BertVariantForMaskedLM(BertVariantConfig(**changes, **size)).eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    missing = model.load_state_dict(bert.state_dict(), strict=False).missing_keys
    assert all("skip" in key or ".dense." in key for key in missing)
    return model.to(dtype)


@pytest.fixture
def batch():
    return tiny_batches()[0]


@torch.no_grad()
def test_a_variant_without_changes_gives_the_logits_of_bert(batch):
    assert torch.equal(variant({})(**batch).logits, tiny_model("bert-mlm")(**batch).logits)


@torch.no_grad()
def test_layers_without_skips_equal_a_bert_with_skips_scaled_to_zero(batch):
    with fp.skip_scale(tiny_model("bert-mlm", dtype=torch.float64), {1: 0.0}) as bert:
        expected = bert(**batch).logits

    cut = variant({"no_skip_layers": (1,)}, torch.float64)

    torch.testing.assert_close(cut(**batch).logits, expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_skip_scale_has_the_same_effect_on_a_variant_and_on_bert(batch):
    model, bert = variant({}, torch.float64), tiny_model("bert-mlm", dtype=torch.float64)
    with fp.skip_scale(bert, 0.5), fp.skip_scale(model, 0.5):
        torch.testing.assert_close(model(**batch).logits, bert(**batch).logits, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_learned_skip_weight_is_one_initially_and_scales_the_skip():
    model, batch = variant({"weighted_skip": True}, torch.float64), tiny_batches()[0]
    bert = tiny_model("bert-mlm", dtype=torch.float64)
    weights = [parameter for name, parameter in model.named_parameters() if "skip" in name]
    fresh = BertVariantForMaskedLM(model.config)
    assert {float(parameter) for name, parameter in fresh.named_parameters() if "skip" in name} == {1.0}

    assert len(weights) == 2 * 3
    for weight in weights:
        weight.fill_(0.5)

    with fp.skip_scale(bert, 0.5):
        torch.testing.assert_close(model(**batch).logits, bert(**batch).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@torch.no_grad()
def test_linear_attention_leaves_padding_out(implementation, batch):
    model = variant({"attention": "linear"}, torch.float64)
    model.set_attn_implementation(implementation)
    calls = []
    attention = model.bert.encoder.layer[0].attention.self
    assert isinstance(attention, LinearSelfAttention)
    attention.register_forward_hook(lambda _, args, result: calls.append((args[0], result[0])))

    model(**batch)

    (state, out), mask = calls[0], batch["attention_mask"].double()
    q, k, v = (
        F.linear(state, part.weight, part.bias).unflatten(2, (4, 8)).transpose(1, 2)
        for part in (attention.query, attention.key, attention.value)
    )
    scores = q @ k.mT / 8**0.5 * mask[:, None, None, :]
    torch.testing.assert_close(out, (scores @ v).transpose(1, 2).flatten(2), rtol=0, atol=1e-10)


@torch.no_grad()
def test_padding_changes_no_logit_of_any_variant():
    one, ids = {}, torch.randint(3, 100, (1, 9), generator=torch.Generator().manual_seed(0))
    padded = F.pad(ids, (0, 5))
    mask = (torch.arange(14) < 9).long()[None]
    for name, changes in CHANGES.items():
        model = variant(changes, torch.float64)
        one[name] = model(input_ids=ids).logits
        torch.testing.assert_close(
            model(input_ids=padded, attention_mask=mask).logits[:, :9], one[name], rtol=0, atol=1e-10
        )


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_identities_hold_and_every_element_is_scanned(name, batch):
    model = variant(CHANGES[name])
    points = resolve(model)

    assert all(identity.holds for identity in check_points(model, points, batch).identities)
    scan = fp.linearity(model, tiny_batches(), progress=False)

    ffn = {"ffn", "ffn_sum", "mlp", "mlp_act"}
    absent = ffn if name == "no-ffn" else set()
    assert {*scan.elements} == {"layer", "attention", "attention_sum", "attn", "attn_heads", "attn_proj"} | ffn - absent
    r2 = {row["element"]: row["r2"] for row in scan.rows if row["layer"] == 1}
    if name == "linear":
        assert min(r2["mlp"], r2["mlp_act"], r2["ffn_sum"]) > 1 - 1e-6
    assert (r2["attn_proj"] > 1 - 1e-6) == (name != "gelu-attention")


@pytest.mark.parametrize("name", CHANGES)
def test_a_permuted_variant_gives_the_error_of_moved_modules(name):
    model, batches = variant(CHANGES[name], torch.float64), tiny_batches(shortest=14)
    effects = fp.commutativity(model, batches, [fp.orders.parse("2,1,0")], progress=False)

    with torch.no_grad():
        before = torch.cat([model.bert(**batch)[0] for batch in batches])
        model.bert.encoder.layer = model.bert.encoder.layer[::-1]
        after = torch.cat([model.bert(**batch)[0] for batch in batches])

    expected = float((after - before).norm() / before.norm())
    assert effects.rows[1]["relative_l2"] == pytest.approx(expected, abs=1e-7)
    assert (expected == 0) == (name == "shared-layers")


def test_without_ffn_the_attention_is_the_layer_and_the_ffn_is_refused():
    model, batches = variant({"ffn": "none"}), tiny_batches()

    effects = fp.commutativity(model, batches, [fp.orders.parse("0,attention.1,2")], progress=False)

    assert effects.rows[1]["relative_l2"] == 0
    with pytest.raises(UnsupportedModelError, match="no FFN"):
        fp.commutativity(model, batches, [fp.orders.parse("0,ffn.1,2")], progress=False)
    with pytest.raises(UnsupportedModelError, match="no FFN"), fp.skip_scale(model, 0.0, parts=["ffn"]):
        pass


@pytest.mark.parametrize("name", CHANGES)
def test_each_element_can_be_reset_to_random_weights(name):
    model, batches = variant(CHANGES[name]), tiny_batches()
    elements = ["layer", "attention", "attn", "attn_heads", "attn_proj"]
    elements += [] if name == "no-ffn" else ["ffn", "mlp", "mlp_act"]
    before = {key: value.clone() for key, value in model.state_dict().items()}

    damage = fp.ablation(model, batches, elements=elements, mode="random_init", layers=[1], progress=False)

    measured = {row["element"]: row["relative_l2"] for row in damage.rows[1:]}
    assert min(measured.values()) > 1e-3
    distinct = {measured[element] for element in ("layer", "attn", "attn_heads", "attn_proj")}
    assert len(distinct) == (3 if name == "no-ffn" else 4)  # without an FFN the layer is its attention
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_shared_weights_count_once_and_stay_shared_after_a_step():
    model = variant({"shared_layers": True})
    one = BertVariantForMaskedLM(BertVariantConfig(**model.config.to_diff_dict() | {"num_hidden_layers": 1}))
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in one.parameters())

    ids = tiny_batches()[0]["input_ids"]
    model.train()(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()

    first, *others = model.bert.encoder.layer
    for layer in others:
        assert all(a is b for a, b in zip(first.parameters(), layer.parameters(), strict=True))


def test_the_training_loss_equals_the_loss_of_bert(batch):
    model, bert = variant({}, torch.float64), tiny_model("bert-mlm", dtype=torch.float64)
    draws = torch.rand(batch["input_ids"].shape, generator=torch.Generator().manual_seed(0))
    labels = torch.where(draws < 0.3, batch["input_ids"], -100)

    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    loss = model(**batch, labels=labels).loss
    summed = model(**batch, labels=labels, num_items_in_batch=10).loss
    torch.testing.assert_close(loss, bert(**batch, labels=labels).loss)
    torch.testing.assert_close(summed * 10, loss * (labels != -100).sum())


ALONE = """
import sys, torch
sys.modules["fastprobe"] = None  # as if it were not installed
from transformers import AutoModelForMaskedLM
for folder in sys.argv[1:]:
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
    ids, logits = torch.load(folder + "/expected.pt")
    assert torch.equal(model(input_ids=ids).logits, logits), folder
"""


def test_a_saved_variant_loads_with_and_without_fastprobe(tmp_path, batch):
    folders = []
    for name, changes in CHANGES.items():
        model, folder = variant(changes), tmp_path / name
        model.save_pretrained(folder)
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"]).logits
            here = AutoModelForMaskedLM.from_pretrained(folder).eval()
            assert torch.equal(here(input_ids=batch["input_ids"]).logits, logits)
        torch.save((batch["input_ids"], logits), folder / "expected.pt")
        folders.append(str(folder))

    done = subprocess.run([sys.executable, "-c", ALONE, *folders], capture_output=True, text=True, cwd=tmp_path)

    assert done.returncode == 0, done.stderr[-500:]
