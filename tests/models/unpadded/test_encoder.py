"""The unpadded encoder, compared with the Hugging Face modules whose weights it uses."""

import pytest
import torch
import transformers

from fastprobe.errors import InputError
from fastprobe.models.loading import load_model
from fastprobe.models.points import Point
from fastprobe.models.recorder import ModuleRecorder
from fastprobe.models.resolve import resolve
from fastprobe.models.unpadded.encoder import Encoder
from fastprobe.models.unpadded.recorder import UnpaddedRecorder
from fastprobe.models.unpadded.tokens import UnpaddedTokens
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

LENGTHS = {
    "one token": [1],
    "one sequence": [37],
    "equal lengths": [16] * 5,
    "very unequal": [1, 512, 3, 64, 1, 200],
    "one padding": [9, 9, 8],
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
        points.canonical(Point(name, layer)): layer for layer, of in enumerate(points.found) for name in of.places
    }
    kept = {}
    with kind(model, points, wanted, lambda _, held: kept.update(held)) as recorder:
        recorder.run(batch)
    return kept


def assert_same_points(model, batch, tolerance=1e-5):
    padded_points, found = all_points(ModuleRecorder, model, batch), all_points(UnpaddedRecorder, model, batch)
    tokens = UnpaddedTokens.of(batch["attention_mask"].bool())
    assert padded_points.keys() == found.keys()
    for point, tensor in padded_points.items():
        expected = tokens.unpad(tensor)
        assert found[point].shape == expected.shape
        error = (found[point] - expected).double().norm() / expected.double().norm()
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
def test_token_types_and_positions_are_taken_from_the_batch(family):
    batch = padded([5, 12, 7])
    batch["token_type_ids"] = (torch.arange(12) > 3).long().expand(3, 12)
    batch["position_ids"] = torch.arange(12).flip(0)[None] + 2

    assert_same_points(random_model(family, type_vocab_size=2), batch)


def test_masked_tokens_inside_a_sequence_are_padding():
    batch = padded([9, 9])
    batch["attention_mask"][0, 3] = 0

    assert_same_points(random_model(), batch)


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "gelu_python", "silu"])
def test_other_activations_give_the_same_points(activation):
    assert_same_points(random_model(hidden_act=activation), padded([5, 12]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)], ids=str)
def test_other_dtypes_give_the_same_points(dtype, tolerance):
    assert_same_points(random_model(dtype=dtype), padded([5, 40, 12, 1]), tolerance)


@torch.no_grad()
def test_final_states_and_logits_equal_those_of_the_model():
    model = transformers.BertForMaskedLM(random_model().config).eval()
    batch = padded([5, 40, 12, 1])
    mask = batch["attention_mask"].bool()
    tokens, encoder = UnpaddedTokens.of(mask), Encoder(model, resolve(model))

    state = encoder.stem(batch, tokens)
    for layer in encoder.layers:
        state = layer(state, tokens)

    logits = model.cls(tokens.pad(state))
    torch.testing.assert_close(tokens.pad(state)[mask], model.bert(**batch)[0][mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[mask], model(**batch)[0][mask], rtol=0, atol=1e-4)


@torch.no_grad()
def test_concatenated_copies_give_the_states_of_each_alone(randn):
    model, batch = random_model(), padded([5, 40, 12, 5])
    tokens, layer = UnpaddedTokens.of(batch["attention_mask"].bool()), Encoder(model, resolve(model)).layers[1]
    states = [randn(len(tokens), 33, dtype=torch.float32) for _ in range(3)]

    together = layer(torch.cat(states), tokens, copies=3)

    torch.testing.assert_close(together, torch.cat([layer(state, tokens) for state in states]), rtol=0, atol=1e-5)


def test_weights_are_shared_with_the_model():
    model, batch = random_model(), padded([3, 4])
    encoder = Encoder(model, resolve(model))
    held = {tensor.data_ptr() for layer in encoder.layers for m in vars(layer).values() for tensor in _parameters(m)}

    assert held <= {parameter.data_ptr() for parameter in model.parameters()}
    assert_same_points(model, batch)


def _parameters(module):
    return module.parameters() if isinstance(module, torch.nn.Module) else []


def test_an_error_names_the_unknown_argument_of_a_later_batch():
    model, batch = tiny_model("bert"), tiny_batches()[0]
    tokens = UnpaddedTokens.of(batch["attention_mask"].bool())

    with pytest.raises(InputError, match="a batch has inputs_embeds, which the first one does not have"):
        Encoder(model, resolve(model)).stem(batch | {"inputs_embeds": None}, tokens)
