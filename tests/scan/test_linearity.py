"""``linearity`` against a float64 SVD of stored activations, and what must not change a number."""

import argparse
import gc
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import fastprobe as fp
from fastprobe.data.sources import load_text
from fastprobe.errors import InputError, NumericalError, UnsupportedModelError
from fastprobe.models.calling import first_tensor
from fastprobe.models.loading import load_model
from fastprobe.models.points import ELEMENTS
from fastprobe.testing.tiny_models import tiny_batches, tiny_model
from tests.reference import columns, cosines, fit, read_points, read_unpadded_points, token_folds

_BERT = {
    "resid_pre": ("", "in"),
    "attn_heads": ("attention.output.dense", "in"),
    "attn_out": ("attention.output.dense", "out"),
    "resid_mid": ("attention.output", "out"),
    "mlp_act": ("intermediate", "out"),
    "mlp_out": ("output.dense", "out"),
    "resid_post": ("", "out"),
}
_LLAMA = {
    "resid_pre": ("", "in"),
    "attn_in": ("input_layernorm", "out"),
    "attn_heads": ("self_attn.o_proj", "in"),
    "attn_out": ("self_attn", "out"),
    "resid_mid": ("post_attention_layernorm", "in"),
    "mlp_in": ("mlp", "in"),
    "mlp_act": ("mlp.down_proj", "in"),
    "mlp_out": ("mlp", "out"),
    "resid_post": ("", "out"),
}
_GPT2 = {
    "resid_pre": ("", "in"),
    "attn_in": ("ln_1", "out"),
    "attn_heads": ("attn.c_proj", "in"),
    "attn_out": ("attn", "out"),
    "resid_mid": ("ln_2", "in"),
    "mlp_in": ("mlp", "in"),
    "mlp_act": ("mlp.c_proj", "in"),
    "mlp_out": ("mlp", "out"),
    "resid_post": ("", "out"),
}
_GEMMA = _LLAMA | {"resid_mid": ("pre_feedforward_layernorm", "in")}
CASES = {
    "bert": (lambda m: m.encoder.layer, _BERT),
    "roberta": (lambda m: m.encoder.layer, _BERT),
    "electra": (lambda m: m.encoder.layer, _BERT),
    "gpt2": (lambda m: m.transformer.h, _GPT2),
    "llama": (lambda m: m.model.layers, _LLAMA),
    "mistral": (lambda m: m.model.layers, _LLAMA),
    "qwen3": (lambda m: m.model.layers, _LLAMA),
    "gemma2": (lambda m: m.model.layers, _GEMMA),
    "gemma3": (lambda m: m.model.layers, _GEMMA),
}
SCAN = {"progress": False, "score_sequences": "all", "cka": "all"}


def with_sums(stored: dict[str, np.ndarray], post_ln: bool) -> dict[str, np.ndarray]:
    """Add the points that equal another point of the layer, or are a sum of two."""
    for layer in range(1 + max(int(name.split(".")[1]) for name in stored)):
        if post_ln:
            stored[f"attn_in.{layer}"] = stored[f"resid_pre.{layer}"]
            stored[f"mlp_in.{layer}"] = stored[f"resid_mid.{layer}"]
        stored[f"attn_sum.{layer}"] = stored[f"attn_out.{layer}"] + stored[f"resid_pre.{layer}"]
        stored[f"mlp_sum.{layer}"] = stored[f"mlp_out.{layer}"] + stored[f"resid_mid.{layer}"]
        if not post_ln:
            stored[f"attn_sum.{layer}"] = stored[f"resid_mid.{layer}"]
            stored[f"mlp_sum.{layer}"] = stored[f"resid_post.{layer}"]
    return stored


def assert_rows_match(scan, stored, fold, columns_of_cosine=("cosine", "cosine_cv")):
    for row in scan.rows:
        x, y = ELEMENTS.get(row["element"], ("resid_pre", "resid_post"))
        exact = columns(stored[f"{x}.{row['start']}"], stored[f"{y}.{row['stop'] - 1}"], fold)
        for column, value in exact.items():
            if column.startswith("cosine") and column not in columns_of_cosine:
                continue
            allowed = 1e-6 * max(1.0, abs(value))  # r2_identity may be far below -1
            if column == "r2_residual":  # relative to the variance of y - x, which may be much less than that of y
                allowed = 1e-6 * max(1.0, (1 - value) / (1 - exact["r2"]))
            if row["error_bound"] > 1e-3:  # marked in the table
                allowed = row["error_bound"]
            assert row[column] == pytest.approx(value, abs=allowed), (row["element"], row["start"], column)


@pytest.mark.parametrize("family", CASES)
def test_every_column_equals_that_of_a_float64_svd(family):
    layers, places = CASES[family]
    model, batches = tiny_model(family), tiny_batches(sequences=48, batch_size=16)

    scan = fp.linearity(model, batches, spans="all", **SCAN)

    assert len(scan.rows) == 10 * 3 + 6
    stored = with_sums(read_points(model, layers(model), places, batches), family in ("bert", "roberta", "electra"))
    assert_rows_match(scan, stored, token_folds(batches, 5))


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", [load_text([], None, "")[0], Path(argparse.__file__)], ids=["demo text", "other text"]
)
def test_scores_of_the_demo_model_equal_those_of_a_float64_svd(source):
    model, tokenizer = load_model(None)
    batches = list(fp.token_batches(source, tokenizer, tokens=4_000))

    scan = fp.linearity(model, batches, layers=[0, 5], **SCAN)

    stored = with_sums(read_unpadded_points(model, batches), post_ln=True)
    assert_rows_match(scan, stored, token_folds(batches, 5))
    assert all(row["rank"] == 383 for row in scan.rows if row["element"] in ("layer", "ffn"))


def scores(scan, without=()):
    keys = [k for k, v in scan.rows[0].items() if isinstance(v, float) and k not in without]
    return np.array([[np.nan if row[k] is None else row[k] for k in keys] for row in scan.rows])


@pytest.fixture(scope="module")
def exact_model():
    return tiny_model("bert", dtype=torch.float64)


ROUNDING = {"condition", "error_bound"}  # columns that depend on rounding


def test_padding_and_batch_size_change_no_column(exact_model):
    one_by_one = tiny_batches(batch_size=1)
    for batch in one_by_one:
        length = int(batch["attention_mask"].sum())
        batch.update({key: value[:, :length] for key, value in batch.items()})

    padded = fp.linearity(exact_model, tiny_batches(batch_size=6), **SCAN)
    unpadded = fp.linearity(exact_model, one_by_one, **SCAN)

    np.testing.assert_allclose(scores(padded, ROUNDING), scores(unpadded, ROUNDING), rtol=0, atol=1e-9)


def test_the_order_of_sequences_changes_only_the_columns_of_folds(exact_model):
    batches = tiny_batches(batch_size=3)
    options = SCAN | {"score_sequences": 7}

    forth = fp.linearity(exact_model, batches, **options)
    back = fp.linearity(exact_model, batches[::-1], **options)

    of_folds = {"r2_cv", "r2_cv_se", "nonlinearity", "cosine_cv"}
    without = ROUNDING | of_folds
    np.testing.assert_allclose(scores(forth, without), scores(back, without), rtol=0, atol=1e-9)
    assert not np.allclose(scores(forth), scores(back), rtol=0, atol=1e-9)


def test_hooks_are_removed_and_training_mode_is_restored():
    model = tiny_model("bert").train()
    model.encoder.layer[1].eval()

    fp.linearity(model, tiny_batches(), progress=False)

    assert model.training
    assert not model.encoder.layer[1].training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["bert", "gpt2"])  # by the runner and by hooks
def test_the_moments_are_freed_with_the_scan_without_the_garbage_collector(family):
    model, batches = tiny_model(family), tiny_batches()
    gc.collect()
    gc.disable()
    try:
        scan = fp.linearity(model, batches, progress=False)
        moments = weakref.ref(scan.moments)
        del scan
        assert moments() is None
    finally:
        gc.enable()


def test_the_forward_pass_stops_after_the_last_layer_needed():
    model = tiny_model("llama")
    reached = {1: [], 2: []}
    for layer, sequences in reached.items():
        model.model.layers[layer].register_forward_hook(lambda _, __, out, seen=sequences: seen.append(len(out)))

    fp.linearity(model, tiny_batches(batch_size=6), layers=[0, 1], progress=False)

    assert max(reached[1]) == 6
    assert max(reached[2]) == 2  # checks run all layers on two sequences


def test_cosine_objective_is_the_cosine_of_the_fit_on_unit_norm_targets(exact_model):
    batches = tiny_batches(sequences=60, batch_size=20)

    scan = fp.linearity(exact_model, batches, objective="cosine", elements=["mlp", "ffn_sum"], **SCAN)

    stored = with_sums(read_points(exact_model, exact_model.encoder.layer, _BERT, batches), post_ln=True)
    for row in scan.rows:
        x, y = (stored[f"{point}.{row['layer']}"] for point in ELEMENTS[row["element"]])
        units = y / np.linalg.norm(y, axis=1, keepdims=True)
        predicted = fit(x, units, 1e-12)[0](x)
        assert row["cosine_objective"] == pytest.approx(cosines(y, predicted).mean(), abs=1e-9)
        assert row["cosine_objective"] != pytest.approx(row["cosine"], abs=1e-6)


def test_without_folds_or_scored_sequences_their_columns_are_empty():
    scan = fp.linearity(tiny_model("gpt2"), tiny_batches(), folds=0, score_sequences=0, progress=False)

    assert {row[c] for row in scan.rows for c in ("r2_cv", "nonlinearity", "cosine", "cosine_cv")} == {None}
    assert all(row["r2"] > 0 for row in scan.rows)


def test_fewer_tokens_than_columns_are_scored_and_marked():
    scan = fp.linearity(tiny_model("bert"), tiny_batches(sequences=4, batch_size=2, length=6), progress=False, folds=2)

    ffn = next(row for row in scan.rows if row["element"] == "ffn")
    assert ffn["r2"] == pytest.approx(1, abs=1e-6)
    assert ffn["r2_adjusted"] is None
    assert ffn["r2_cv"] < 0.9
    assert ffn["note"] == f"cannot be said with {ffn['tokens']} tokens; at least {ffn['tokens_needed']} would do"


def test_the_runner_finds_a_nan_of_a_weight():
    model, batches = tiny_model("bert"), tiny_batches(batch_size=6)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[99] = torch.nan
    batches = [{k: v.clone() for k, v in batch.items()} for batch in batches]
    for batch in batches[:2]:
        batch["input_ids"].clamp_(max=98)
    batches[2]["input_ids"][0, 0] = 99

    with pytest.raises(NumericalError, match=r"batch 2: .*\.0: .*NaN"):
        fp.linearity(model, batches, score_sequences=0, progress=False)


@pytest.mark.parametrize(("family", "runner"), [("bert", "encoder"), ("gpt2", "modules of the model (GPT2Model")])
def test_a_scan_records_its_runner(family, runner):
    scan = fp.linearity(tiny_model(family), tiny_batches(), score_sequences=0, progress=False)

    assert scan.config["runner"].startswith(runner)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_nan_is_reported_with_its_point_and_batch(layer):
    model, batches = tiny_model("bert"), tiny_batches(batch_size=6)
    calls = []

    def spoil(_, __, out):
        calls.extend([1] * (len(out) > 2))  # checks run two sequences
        return out.index_fill(1, torch.tensor([0]), torch.nan) if len(calls) > 2 else out

    model.encoder.layer[layer].output.dense.register_forward_hook(spoil)

    with pytest.raises(NumericalError, match=rf"batch 2: (mlp_out|resid_post|mlp_sum).{layer}: .*NaN"):
        fp.linearity(model, batches, score_sequences=0, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"elements": ["fnn"]}, "unknown element 'fnn'; the elements are layer, attention"),
        ({"layers": [3]}, "no layer 3; the model has layers 0 to 2"),
        ({"spans": "2-9"}, "2-9 is not a range of layers"),
        ({"spans": "x"}, "'x' is not a layer or a half-open range"),
        ({"folds": -1}, "folds: must be 0 or more"),
        ({"objective": "l1"}, "objective: 'l1' is not one of"),
        ({"cka": "some"}, "cka: 'some' is not one of"),
        ({"score_sequences": "few"}, "score_sequences: must be a number"),
        ({"elements": [], "spans": None}, "nothing to score"),
    ],
)
def test_unusable_arguments_are_named(options, message):
    with pytest.raises(InputError, match=message):
        fp.linearity(tiny_model("bert"), tiny_batches(), progress=False, **options)


def test_the_old_name_of_method_is_accepted_with_a_warning():
    model, batches = tiny_model("bert"), tiny_batches()
    options = {"elements": ["ffn"], "score_sequences": 0, "progress": False}

    with pytest.warns(DeprecationWarning, match="linearity: the argument fit is now method"):
        old = fp.linearity(model, batches, fit=fp.LeastSquares(alpha=2.0), **options)

    assert old.rows == fp.linearity(model, batches, method=fp.LeastSquares(alpha=2.0), **options).rows
    assert old.config["alpha"] == 2.0


def test_no_batches_is_an_error():
    with pytest.raises(InputError, match="there are none"):
        fp.linearity(tiny_model("bert"), [], progress=False)


def test_ids_in_lists_are_named():
    batches = [{key: value.tolist() for key, value in batch.items()} for batch in tiny_batches()]

    with pytest.raises(InputError, match=r"batch 0 has no \(batch, length\) tensor 'input_ids'; it is a list"):
        fp.linearity(tiny_model("bert"), batches, progress=False)


def test_a_missing_element_is_named_with_those_of_the_model():
    with pytest.raises(InputError, match="no 'ffn'; it has layer, attn"):
        fp.linearity(tiny_model("neox"), tiny_batches(), elements=["ffn"], progress=False)


def test_moments_that_do_not_fit_in_memory_are_refused_before_the_run(monkeypatch):
    monkeypatch.setattr(sys.modules["fastprobe.scan.memory_check"], "free_bytes", lambda device: 1_000_000)
    model = tiny_model("bert")
    ran = []
    model.encoder.layer[0].register_forward_hook(lambda _, __, out: ran.append(len(first_tensor(out))))

    with pytest.raises(InputError, match=r"take [\d,]+ bytes .* 1.0 MB are free; folds=0 takes"):
        fp.linearity(model, tiny_batches(batch_size=6), progress=False)

    assert max(ran) == 2  # checks run two sequences


def test_a_model_whose_identities_fail_is_refused():
    model = tiny_model("bert")
    model.encoder.layer[1].attention.output.LayerNorm.register_forward_hook(lambda m, a, out: out * 1.01)
    # A hook that changes what the norm gives changes what the identity computes as well; one on the sum does not.
    model.encoder.layer[2].attention.output.register_forward_hook(lambda m, a, out: out * 1.01)

    with pytest.raises(UnsupportedModelError, match="fails in layer 2"):
        fp.linearity(model, tiny_batches(), progress=False)


def test_labels_of_a_language_model_are_left_out():
    model, batches = tiny_model("bert-mlm"), tiny_batches()
    labelled = [batch | {"labels": batch["input_ids"]} for batch in batches]

    scan = fp.linearity(model, labelled, elements=["ffn"], progress=False)

    assert scan.rows == fp.linearity(model, batches, elements=["ffn"], progress=False).rows


def test_the_top_rows_have_the_largest_numbers():
    rows = [{"layer": layer, "r2": value} for layer, value in enumerate((0.2, 0.9, None, 0.5))]
    scan = fp.LinearityScan({}, rows)

    assert [row["layer"] for row in scan.top(2, "r2")] == [1, 3]
    with pytest.raises(InputError, match="k: must be 1 or more, got -5"):
        scan.top(-5, "r2")
    with pytest.raises(InputError, match="no row has 'cka'; the rows have layer, r2"):
        scan.top(1, "cka")
