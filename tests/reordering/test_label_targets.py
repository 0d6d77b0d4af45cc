"""Labels: the loss of the baseline is the loss that the model computes from the same labels."""

import pytest
import torch
import transformers
from torch.nn import functional as F

import fastprobe as fp
from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model

HEADS = [family for family in FAMILIES if hasattr(tiny_model(family), "lm_head") or family == "bert-mlm"]
NO_PADDING = {"sequences": 4, "batch_size": 4, "shortest": 14}


def own_loss(model, batches):
    """Return the mean of the model's own losses, one batch at a time; all have equally many labels."""
    with torch.no_grad():
        return sum(float(model(**batch).loss) for batch in batches) / len(batches)


def loss_of(model, batches):
    return fp.commutativity(model, batches, [], progress=False).rows[0]["loss"]


def random_encoder_head(kind, config):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    size |= {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    size |= {"cls_token_id": 1, "sep_token_id": 2} if kind.startswith("Modern") else {}
    size |= {"is_decoder": True} if kind == "BertLMHeadModel" else {}
    return getattr(transformers, kind)(getattr(transformers, config)(**size)).eval()


@pytest.mark.parametrize("family", HEADS)
def test_the_loss_of_labels_is_that_of_the_model(family):
    model = tiny_model(family)
    batches = [batch | {"labels": batch["input_ids"]} for batch in tiny_batches(**NO_PADDING)]

    assert loss_of(model, batches) == pytest.approx(own_loss(model, batches), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("BertLMHeadModel", "BertConfig"),
        ("RobertaForMaskedLM", "RobertaConfig"),
        ("DistilBertForMaskedLM", "DistilBertConfig"),
        ("ModernBertForMaskedLM", "ModernBertConfig"),
    ],
)
@pytest.mark.parametrize("which", ["all", "every third", "padded"])
def test_the_loss_is_that_of_the_model_for_any_head_and_labels(kind, config, which):
    model = random_encoder_head(kind, config)
    batch = tiny_batches()[0] if which == "padded" else tiny_batches(**NO_PADDING)[0]
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    if which == "every third":
        labels[:, ::3] = -100
    batches = [batch | {"labels": labels}]

    assert loss_of(model, batches) == pytest.approx(own_loss(model, batches), rel=1e-5)


def test_padding_on_the_left_does_not_predict_the_first_token():
    model = tiny_model("llama")
    batch = {key: value.flip(1) for key, value in tiny_batches()[0].items()}
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)

    found = loss_of(model, [batch | {"labels": labels}])

    labels[:, 1:][batch["attention_mask"][:, :-1] == 0] = -100
    assert found == pytest.approx(own_loss(model, [batch | {"labels": labels}]), rel=1e-5)


def test_a_loss_with_another_convention_than_the_kind_of_model_is_followed():
    model = tiny_model("gpt2")
    model.loss_function = lambda logits, labels, vocab_size, **_: F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100
    )
    batches = [batch | {"labels": batch["input_ids"]} for batch in tiny_batches(**NO_PADDING)]

    assert loss_of(model, batches) == pytest.approx(own_loss(model, batches), rel=1e-5)


def test_a_loss_that_follows_no_convention_is_refused():
    model = tiny_model("gpt2")
    model.loss_function = lambda logits, labels, **_: logits.float().square().mean()
    batches = [batch | {"labels": batch["input_ids"]} for batch in tiny_batches()]

    with pytest.raises(UnsupportedModelError, match="labels: the loss of GPT2LMHeadModel on one sequence is"):
        loss_of(model, batches)


def test_labels_of_padding_do_not_count():
    model = tiny_model("gpt2")
    batches = tiny_batches()
    masked = [
        batch | {"labels": torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)} for batch in batches
    ]

    of_ids = fp.commutativity(model, [batch | {"labels": batch["input_ids"]} for batch in batches], [], progress=False)

    assert of_ids.rows == fp.commutativity(model, masked, [], progress=False).rows
    assert of_ids.rows == fp.commutativity(model, batches, [], progress=False).rows


def test_the_first_labels_of_a_run_decide():
    model, (first, second, _) = tiny_model("gpt2"), tiny_batches()
    nothing = torch.full_like(first["input_ids"], -100)
    batches = [first | {"labels": nothing}, second | {"labels": second["input_ids"]}]

    row = fp.commutativity(model, batches, [], progress=False).rows[0]

    alone = fp.commutativity(model, batches[1:], [], progress=False).rows[0]
    assert row["loss"] == pytest.approx(alone["loss"], rel=1e-6)


@pytest.mark.parametrize("labels", [torch.zeros(6, dtype=torch.int64), torch.zeros(6, 14)])
def test_labels_of_another_shape_or_dtype_are_refused(labels):
    batch = tiny_batches()[0] | {"labels": labels}

    with pytest.raises(InputError, match=r"labels must be integers of shape \(6, 14\)"):
        loss_of(tiny_model("gpt2"), [batch])


def test_a_model_without_a_loss_gets_the_convention_of_its_kind(monkeypatch):
    model, batches = tiny_model("gpt2"), tiny_batches()
    expected = fp.commutativity(model, batches, [], progress=False).rows
    monkeypatch.setattr(model, "loss_function", lambda *_, **__: None, raising=False)

    rows = fp.commutativity(model, [b | {"labels": b["input_ids"]} for b in batches], [], progress=False).rows

    assert rows == expected
