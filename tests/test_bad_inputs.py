"""Every verb ends in a result or in one line of ``fastprobe.errors``, whatever a user passes."""

import contextlib

import numpy as np
import pytest
import torch

import fastprobe as fp
from fastprobe.errors import FastprobeError, InputError
from fastprobe.testing.tiny_models import FAMILIES, VOCABULARY, tiny_batches, tiny_model
from tests.test_odd_batches import VERBS, scores

PLAIN = tiny_batches()
FIRST = PLAIN[0]
SHAPE = FIRST["input_ids"].shape


def first(**changed):
    """Return the batches with some tensors of the first one changed."""
    return [FIRST | changed, *PLAIN[1:]]


def without(key):
    return [{name: value for name, value in batch.items() if name != key} for batch in PLAIN]


def longer(length):
    return [{"input_ids": torch.full((2, length), 5), "attention_mask": torch.ones(2, length, dtype=torch.long)}]


def left_padded(batches):
    """Return the batches with the padding of every sequence moved to its left."""
    moved = []
    for batch in batches:
        shifts = (batch["attention_mask"] == 0).sum(1).tolist()
        rows = {key: [row.roll(by) for row, by in zip(value, shifts, strict=True)] for key, value in batch.items()}
        moved.append({key: torch.stack(value) for key, value in rows.items()})
    return moved


BATCHES = {
    "none": None,
    "number": 3,
    "text": "a text",
    "tensor": FIRST["input_ids"],
    "one dict": FIRST,
    "dict of lists": [{key: value.tolist() for key, value in FIRST.items()}],
    "arrays": [{key: value.numpy() for key, value in FIRST.items()}],
    "list of texts": ["a", "b"],
    "list of nothing": [None],
    "list of tuples": [tuple(FIRST.values())],
    "no batch": [],
    "empty dict": [{}],
    "empty first batch": [{key: value[:0] for key, value in FIRST.items()}, *PLAIN],
    "empty columns": [{key: value[:, :0] for key, value in FIRST.items()}, *PLAIN],
    "only empty batches": [{key: value[:0] for key, value in FIRST.items()}],
    "padding only": [{key: torch.zeros_like(value) for key, value in FIRST.items()}, *PLAIN],
    "no ids": without("input_ids"),
    "no mask": without("attention_mask"),
    "one sequence without its dimension": [{key: value[0] for key, value in FIRST.items()}],
    "three-dimensional mask": first(attention_mask=torch.ones(*SHAPE, SHAPE[1], dtype=torch.long)),
    "shorter mask": first(attention_mask=FIRST["attention_mask"][:, :-1]),
    "additive mask": first(attention_mask=(FIRST["attention_mask"] - 1.0) * 1e9),
    "floating ids": first(input_ids=FIRST["input_ids"].float()),
    "too large ids": first(input_ids=FIRST["input_ids"] + VOCABULARY),
    "negative ids": first(input_ids=FIRST["input_ids"] - VOCABULARY),
    "too large token types": first(token_type_ids=torch.full(SHAPE, 7)),
    "too large positions": first(position_ids=torch.full(SHAPE, 10**6)),
    "unknown key": first(text=["a"] * SHAPE[0]),
    "too long": longer(600),
    "left padding": left_padded(PLAIN),
    "generator": (batch for batch in PLAIN),
}
RUNS = ("empty first batch", "empty columns", "left padding")
"""Batches that every verb can use."""


def ends_in_one_line(action):
    """Run an action. Return the error of fastprobe, or nothing if it succeeds."""
    found = None
    try:
        action()
    except FastprobeError as error:
        found = error
    assert found is None or len(str(found).splitlines()) == 1
    return found


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_runs_batches_or_refuses_them_in_one_line(verb, family):
    model = tiny_model(family)
    for name, batches in BATCHES.items():
        batches = iter(PLAIN) if name == "generator" else batches
        error = ends_in_one_line(lambda batches=batches: VERBS[verb](model, batches))

        assert name not in RUNS or error is None, (name, error)
        if name in ("none", "one dict", "three-dimensional mask", "too large ids", "negative ids", "additive mask"):
            assert isinstance(error, InputError), name


@pytest.mark.parametrize("verb", VERBS)
def test_an_empty_first_batch_changes_nothing(verb):
    model = tiny_model("bert")

    torch.testing.assert_close(
        scores(verb, model, BATCHES["empty first batch"]), scores(verb, model, PLAIN), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_left_changes_nothing(family, pad):
    model = tiny_model(family)
    batches = left_padded(PLAIN)
    for batch in batches:
        batch["input_ids"][batch["attention_mask"] == 0] = pad

    for verb in ("linearity", "commutativity"):
        right, left = scores(verb, model, PLAIN), scores(verb, model, batches)
        torch.testing.assert_close(left, right, atol=2e-3, rtol=1e-2)


def test_padding_on_the_left_is_refused_where_positions_cannot_be_given(monkeypatch):
    model = tiny_model("bert")
    whole = model.forward

    def forward(input_ids, attention_mask):
        return whole(input_ids=input_ids, attention_mask=attention_mask)

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(InputError, match=r"batch 0 is padded on the left, which changes the states of BertModel by"):
        VERBS["linearity"](model, left_padded(PLAIN))


LAYERS = {
    "permutation of NumPy": np.array([1, 0, 2]),
    "permutation of torch": torch.tensor([1, 0, 2]),
    "integers of NumPy": [np.int64(1), np.int32(0), np.uint8(2)],
    "range": range(2, -1, -1),
    "generator": (layer for layer in (1, 0, 2)),
    "text": "1,0,2",
    "floating": [1.0, 0.0],
    "array of floats": np.array([1.0, 0.0]),
    "names": ["1", "0"],
    "nothing": None,
    "number": 1,
    "zero-dimensional": np.array(1),
    "two dimensions": np.array([[1, 0], [0, 1]]),
    "empty": [],
    "too large": [3],
    "negative": [-1],
    "ragged": [[1, 0], 2],
}
RIGHT = [name for name in LAYERS if "permutation" in name or "integers" in name]


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "generator"])
def test_layers_of_any_type_run_or_are_refused_in_one_line(name):
    model, layers = tiny_model("bert"), LAYERS[name]

    def live(block, *arguments):
        with block(model, *arguments), torch.no_grad():
            return model(**FIRST)

    uses = {
        "permute_layers": lambda: live(fp.permute_layers, layers),
        "skip_layers": lambda: live(fp.skip_layers, layers if name not in RIGHT else layers[:2]),
        "swap_layers": lambda: live(fp.swap_layers, layers, layers),
        "reverse_layers": lambda: live(fp.reverse_layers, layers),
        "skip_scale": lambda: live(fp.skip_scale, {0: layers}),
        "commutativity": lambda: fp.commutativity(model, PLAIN, [layers], progress=False),
        "one order": lambda: fp.commutativity(model, PLAIN, layers, progress=False),
        "probe": lambda: fp.probe(model, PLAIN, orders=[layers], progress=False),
        "commutator": lambda: fp.commutator(model, PLAIN, state=layers, progress=False),
        "linearity": lambda: fp.linearity(model, PLAIN, layers=layers, progress=False),
        "spans": lambda: fp.linearity(model, PLAIN, spans=layers, progress=False),
        "elements": lambda: fp.linearity(model, PLAIN, elements=layers, progress=False),
        "score_sequences": lambda: fp.linearity(model, PLAIN, score_sequences=layers, progress=False),
        "ablation": lambda: fp.ablation(model, PLAIN, layers=layers, progress=False),
    }
    found = {use: ends_in_one_line(action) for use, action in uses.items()}

    if name in RIGHT:
        works = ("permute_layers", "skip_layers", "commutativity", "probe", "linearity", "ablation")
        assert {use: found[use] for use in works} == dict.fromkeys(works)


@pytest.mark.parametrize("name", RIGHT)
def test_integers_of_other_libraries_give_the_same_numbers(name):
    model, layers = tiny_model("bert"), LAYERS[name]

    def rows(layers):
        return fp.commutativity(model, PLAIN, [layers], progress=False).rows

    def output(block, *arguments):
        with block(model, *arguments), torch.no_grad():
            return model(**FIRST)[0]

    assert rows(layers) == rows([1, 0, 2])
    assert output(fp.permute_layers, layers).equal(output(fp.permute_layers, [1, 0, 2]))
    assert output(fp.skip_layers, layers[:2]).equal(output(fp.skip_layers, [0, 1]))
    assert output(fp.swap_layers, layers[0], layers[2]).equal(output(fp.swap_layers, 1, 2))
    assert output(fp.skip_scale, {layers[0]: 0.5}).equal(output(fp.skip_scale, {1: 0.5}))
    one, other = (fp.linearity(model, PLAIN, layers=which, progress=False) for which in (layers[:2], [0, 1]))
    assert one.rows == other.rows


def test_a_sublayer_of_another_name_is_refused():
    with pytest.raises(InputError, match="part: must be 'attention' or 'ffn', got 'mlp'"):
        fp.orders.Sublayer("mlp", 1)


def models():
    """Yield a name and something that is no model of Hugging Face."""
    yield "plain module", torch.nn.Linear(2, 2)
    yield "transformer of torch", torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2), 2)
    yield "data parallel", torch.nn.DataParallel(tiny_model("bert"))
    yield "name", "bert-base-uncased"
    yield "class", type(tiny_model("bert"))
    yield "nothing", None


@pytest.mark.parametrize(("name", "model"), [pytest.param(*pair, id=pair[0]) for pair in models()])
def test_what_is_no_model_is_refused_in_one_line(name, model):
    blocks = {
        "permute_layers": lambda: contextlib.ExitStack().enter_context(fp.permute_layers(model, [0])),
        "skip_scale": lambda: contextlib.ExitStack().enter_context(fp.skip_scale(model, 0.0)),
        "write_linear_mlp_": lambda: fp.write_linear_mlp_(model, 0, None),
    }
    for action in [*blocks.values(), *(lambda verb=verb: VERBS[verb](model, PLAIN) for verb in VERBS)]:
        error = ends_in_one_line(action)

        assert isinstance(error, InputError), name
        assert str(error).startswith("model: must be a Hugging Face model")
