"""A scan layer by layer gives the rows of a scan batch by batch, whatever its budget and wherever its states are."""

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError, NumericalError, UnsupportedModelError
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model

BATCHES = tiny_batches(sequences=30, batch_size=7, length=24, shortest=1)


def scan(model, batches=BATCHES, **options):
    return fp.linearity(model, batches, **{"progress": False, "score_sequences": 9} | options)


def assert_same(found, expected, allowed):
    assert len(found.rows) == len(expected.rows)
    for one, other in zip(found.rows, expected.rows, strict=True):
        assert one.keys() == other.keys()
        for column, value in other.items():
            close = pytest.approx(value, rel=allowed, abs=allowed) if isinstance(value, float) else value
            assert one[column] == close, (other["element"], other["layer"], column)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_those_batch_by_batch(family):
    model, options = tiny_model(family), {"spans": "all", "cka": "all", "objective": "cosine"}

    by_layer = scan(model, schedule="layer", **options)

    assert by_layer.config["schedule"] == "layer"
    assert by_layer.moments is None
    assert_same(by_layer, scan(model, schedule="batch", **options), 1e-6)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize(
    "options",
    [
        {"score_sequences": "all", "spans": "0-2,1-3"},
        {"score_sequences": 0, "folds": 0},
        {"exact": True, "folds": 3},
        {"layers": [2], "elements": ["ffn", "layer"]},
        {"elements": [], "spans": "1-2"},
        {"method": fp.LeastSquares(alpha=1.0)},
    ],
    ids=lambda options: ",".join(options),
)
def test_rows_in_float64_agree_to_nine_digits(family, options):
    model = tiny_model(family, dtype=torch.float64)

    assert_same(scan(model, schedule="layer", **options), scan(model, schedule="batch", **options), 1e-9)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_groups_of_elements_and_states_in_files_change_no_row(family, capfd):
    model = tiny_model(family, dtype=torch.float64)
    options = {"spans": "all", "folds": 2, "score_sequences": "all"}

    few = scan(model, schedule="layer", memory="800kB", progress=True, **options)

    said = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("layer by layer"))
    assert "groups of elements" in said
    assert "in files" in said
    assert few.config["moment_bytes"] < scan(model, schedule="layer", **options).config["moment_bytes"]
    assert_same(few, scan(model, schedule="batch", **options), 1e-9)


@pytest.mark.parametrize("lengths", [[1, 1, 2], [512, 3], [40] * 9])
def test_sequences_of_any_length(lengths):
    model, generator = tiny_model("bert"), torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 100, (1, length), generator=generator) for length in lengths]
    batches = [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]
    options = {"folds": 2, "elements": ["ffn", "attn"]}

    assert_same(scan(model, batches, schedule="layer", **options), scan(model, batches, **options), 1e-6)


def test_auto_goes_batch_by_batch_while_the_sums_fit():
    model = tiny_model("gpt2")

    assert scan(model).config["schedule"] == "batch"
    assert scan(model, memory="50MB").config["schedule"] == "batch"
    assert scan(model, memory="3MB").config["schedule"] == "layer"


def test_a_budget_below_the_smallest_group_is_refused_with_the_size_that_would_do():
    with pytest.raises(
        InputError, match=r"^memory: layer\.0 alone takes .* the budget has 100 kB; raise the budget to"
    ):
        scan(tiny_model("gpt2"), schedule="layer", memory="100kB")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "layers"}, "schedule: must be one of auto, batch, layer, got 'layers'"),
        ({"memory": "much"}, "memory: must be a number of bytes above 0, like 8GB or 500MB, got 'much'"),
        ({"memory": 0}, "memory: must be a number of bytes above 0"),
        ({"schedule": "batch", "memory": "50kB"}, r"memory: the moments .* 50.0 kB are free"),
    ],
)
def test_unusable_schedules_and_budgets_are_named(options, message):
    with pytest.raises(InputError, match=message):
        scan(tiny_model("gpt2"), **options)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_nan_is_reported_with_its_point_and_batch(family):
    model = tiny_model(family)
    batches = [{key: value.clone() for key, value in batch.items()} for batch in BATCHES]
    with torch.no_grad():
        model.get_input_embeddings().weight[99] = torch.nan
    for batch in batches:
        batch["input_ids"].clamp_(max=98)
    batches[2]["input_ids"][1, 0] = 99

    with pytest.raises(NumericalError, match=r"^batch 2: \w+\.0: .*NaN"):
        scan(model, batches, schedule="layer")


def looking_back():
    """Return a model whose last layer adds the output of the first, which it finds in a list."""
    model, seen = tiny_model("bert"), []
    for layer in model.encoder.layer:
        plain = layer.forward

        def forward(*args, plain=plain, **kwargs):
            out = plain(*args, **kwargs)
            seen.append(out)
            return out + 0.1 * seen[-3] if len(seen) % 3 == 0 and out.shape == seen[-3].shape else out

        layer.forward = forward
    return model


def test_a_model_that_looks_back_is_refused_or_goes_batch_by_batch():
    options = {"elements": ["layer"], "folds": 2}
    with pytest.raises(UnsupportedModelError, match=r"schedule: layer by layer cannot run this model: .*looks back"):
        scan(looking_back(), schedule="layer", **options)

    assert scan(looking_back(), memory="1MB", **options).config["schedule"] == "batch"
