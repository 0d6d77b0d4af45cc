"""fastprobe's own runner against the Hugging Face modules whose weights it uses, and what it turns away."""

import re

import pytest
import torch
import transformers

from fastprobe.errors import InputError
from fastprobe.models.loading import load_model
from fastprobe.models.points import Point
from fastprobe.models.record import Recorder
from fastprobe.models.resolve import resolve
from fastprobe.models.unpadded import recorder as flat_record
from fastprobe.models.unpadded.encoder import Encoder
from fastprobe.models.unpadded.recorder import FlatRecorder, recorder_for
from fastprobe.models.unpadded.refusals import encoder_refuses
from fastprobe.models.unpadded.tokens import FlatTokens
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

LENGTHS = {
    "one token": [1],
    "one sequence": [37],
    "all alike": [16] * 5,
    "wildly unequal": [1, 512, 3, 64, 1, 200],
    "no padding but one": [9, 9, 8],
}
SHAPES = {  # hidden, heads, intermediate, layers
    "odd": (33, 3, 65, 2),
    "one head": (20, 1, 41, 1),
    "wide heads": (130, 2, 70, 2),
    "narrow heads": (15, 5, 31, 3),
}
FAMILIES = {
    "bert": ("BertModel", "BertConfig"),
    "roberta": ("RobertaModel", "RobertaConfig"),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaConfig"),
    "camembert": ("CamembertModel", "CamembertConfig"),
    "electra": ("ElectraModel", "ElectraConfig"),
}


def random_model(family="bert", shape="odd", dtype=torch.float32, **options):
    hidden, heads, intermediate, layers = SHAPES[shape]
    if family == "electra":
        options = {"embedding_size": 24} | options
    name, config = (getattr(transformers, each) for each in FAMILIES[family])
    config = config(
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        vocab_size=50,
        max_position_embeddings=520,
        pad_token_id=1,
        **options,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = name(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.to(dtype)


def padded(lengths, *, left=False, pad=1):
    generator = torch.Generator().manual_seed(len(lengths))
    longest = max(lengths)
    ids = torch.randint(2, 50, (len(lengths), longest), generator=generator)
    place = torch.arange(longest)
    if left:
        place = place.flip(0)
    mask = (place < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.where(mask.bool(), ids, pad), "attention_mask": mask}


def all_points(kind, model, batch):
    points = resolve(model)
    wanted = {
        points.canonical(Point(name, layer)): layer for name in points.places for layer in range(len(points.layers))
    }
    kept = {}
    with kind(model, points, wanted, lambda _, held: kept.update(held)) as recorder:
        recorder.run(batch)
    return kept


def assert_same_points(model, batch, tolerance=1e-5):
    own, ours = all_points(Recorder, model, batch), all_points(FlatRecorder, model, batch)
    flat = FlatTokens.of(batch["attention_mask"].bool())
    assert own.keys() == ours.keys()
    for point, tensor in own.items():
        expected = flat.flatten(tensor)
        assert ours[point].shape == expected.shape
        error = (ours[point] - expected).double().norm() / expected.double().norm()
        assert error <= tolerance, f"{point}: {error:.1e}"


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_every_point_of_the_demo_model(lengths):
    model, _ = load_model(None)

    assert_same_points(model, padded(lengths, pad=0))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_point_of_models_of_any_shape(shape, lengths):
    assert_same_points(random_model(shape=shape), padded(lengths))


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_point_of_every_family_padded_on_either_side(family, left):
    assert_same_points(random_model(family), padded([5, 12, 1, 12], left=left))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_token_types_and_positions_are_those_of_the_batch(family):
    batch = padded([5, 12, 7])
    batch["token_type_ids"] = (torch.arange(12) > 3).long().expand(3, 12)
    batch["position_ids"] = torch.arange(12).flip(0)[None] + 2

    assert_same_points(random_model(family, type_vocab_size=2), batch)


def test_holes_in_a_mask_are_padding():
    batch = padded([9, 9])
    batch["attention_mask"][0, 3] = 0

    assert_same_points(random_model(), batch)


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "gelu_python", "silu"])
def test_other_activations_are_the_modules_own(activation):
    assert_same_points(random_model(hidden_act=activation), padded([5, 12]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)], ids=str)
def test_other_dtypes(dtype, tolerance):
    assert_same_points(random_model(dtype=dtype), padded([5, 40, 12, 1]), tolerance)


@torch.no_grad()
def test_final_states_and_logits_are_the_models():
    model = transformers.BertForMaskedLM(random_model().config).eval()
    batch = padded([5, 40, 12, 1])
    mask = batch["attention_mask"].bool()
    flat, encoder = FlatTokens.of(mask), Encoder(model, resolve(model))

    state = encoder.stem(batch, flat)
    for layer in encoder.layers:
        state = layer(state, flat)

    logits = model.cls(flat.restore(state))
    torch.testing.assert_close(flat.restore(state)[mask], model.bert(**batch)[0][mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[mask], model(**batch)[0][mask], rtol=0, atol=1e-4)


@torch.no_grad()
def test_copies_side_by_side_are_each_what_they_are_alone(randn):
    model, batch = random_model(), padded([5, 40, 12, 5])
    flat, layer = FlatTokens.of(batch["attention_mask"].bool()), Encoder(model, resolve(model)).layers[1]
    states = [randn(len(flat), 33, dtype=torch.float32) for _ in range(3)]

    together = layer(torch.cat(states), flat, copies=3)

    torch.testing.assert_close(together, torch.cat([layer(state, flat) for state in states]), rtol=0, atol=1e-5)


def test_weights_are_shared_with_the_module():
    model, batch = random_model(), padded([3, 4])
    encoder = Encoder(model, resolve(model))
    held = {tensor.data_ptr() for layer in encoder.layers for m in vars(layer).values() for tensor in _parameters(m)}

    assert held <= {parameter.data_ptr() for parameter in model.parameters()}
    assert_same_points(model, batch)


def _parameters(module):
    return module.parameters() if isinstance(module, torch.nn.Module) else []


class MyLinear(torch.nn.Linear):
    """What an adapter puts in the place of a Linear."""


def _adapter(model):
    model.encoder.layer[1].output.dense = MyLinear(65, 33)


def _forward_hook(model):
    model.encoder.layer[0].attention.register_forward_hook(lambda *_: None)


def _pre_hook(model):
    model.embeddings.LayerNorm.register_forward_pre_hook(lambda *_: None)


def _replaced(model):
    model.encoder.layer[1].forward = lambda state, *_, **__: state


def _half_trained(model):
    model.encoder.layer[1].attention.self.dropout.train()


def _two_dtypes(model):
    model.encoder.layer[0].output.LayerNorm.double()


def _own_class(model):
    class MyLayer(type(model.encoder.layer[0])):
        pass

    model.encoder.layer[0].__class__ = MyLayer


def _own_attention(model):
    model.config._attn_implementation = "mine"


CHANGES = [
    (_adapter, r"encoder.layer.1.output.dense is a .*MyLinear"),
    (_forward_hook, "a hook on encoder.layer.0.attention"),
    (_pre_hook, "a hook on embeddings.LayerNorm"),
    (_replaced, "the forward of encoder.layer.1 was replaced"),
    (_half_trained, "encoder.layer.1.attention.self.dropout is in training mode"),
    (_two_dtypes, "weights are of several kinds"),
    (_own_class, "encoder.layer.0 is a .*MyLayer"),
    (_own_attention, "attention implementation 'mine'"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
def test_whatever_is_not_exactly_known_is_refused_with_a_reason(change, reason):
    model = random_model()
    assert encoder_refuses(model, padded([3])) is None

    change(model)

    assert re.search(reason, encoder_refuses(model, padded([3])))


def test_hooks_on_all_modules_are_seen():
    model = random_model()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "hooks on all modules" in encoder_refuses(model, padded([3]))
    finally:
        handle.remove()


@torch.no_grad()
def test_hooks_that_transformers_leaves_behind_are_no_reason():
    model = random_model()
    model(**padded([3]), output_hidden_states=True)

    assert encoder_refuses(model, padded([3])) is None


def test_other_families_decoders_and_batches_are_refused():
    batch = padded([3])
    decoder = random_model(is_decoder=True)

    assert "is not one of BertModel" in encoder_refuses(tiny_model("gpt2"), batch)
    assert "decoder" in encoder_refuses(decoder, batch)
    assert "inputs_embeds" in encoder_refuses(random_model(), batch | {"inputs_embeds": torch.zeros(1, 3, 33)})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder_refuses(random_model(), batch) == "autocast is on"


def test_a_runner_that_is_off_from_the_model_is_not_used(monkeypatch):
    model, batch = tiny_model("bert"), tiny_batches()[0]
    points = resolve(model)
    assert recorder_for(model, points, batch) == (FlatRecorder, "")
    run = flat_record.Encoder.stem
    monkeypatch.setattr(flat_record.Encoder, "stem", lambda *args: run(*args) * 1.001)

    kind, reason = recorder_for(model, points, batch)

    assert kind is Recorder
    assert reason.startswith("at resid_pre.0 it is off from the model by 1.0e-03")


def test_a_later_batch_with_something_unknown_is_named():
    model, batch = tiny_model("bert"), tiny_batches()[0]
    flat = FlatTokens.of(batch["attention_mask"].bool())

    with pytest.raises(InputError, match="inputs_embeds came in a batch but not in the first one"):
        Encoder(model, resolve(model)).stem(batch | {"inputs_embeds": None}, flat)
