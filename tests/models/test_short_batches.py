"""Short batches for checks, and models that change when a sequence is short."""

import pytest
import torch
import transformers

import fastprobe as fp
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.resolve import resolve
from fastprobe.models.self_changes import Changes
from fastprobe.models.short_batches import TOKENS, short_batch
from fastprobe.models.stack import LayerStack
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model
from tests.models.test_memoryless import changed

LONG = tiny_batches(sequences=6, length=40, batch_size=6, shortest=20)[0]
FULL = LONG | {"attention_mask": torch.ones_like(LONG["attention_mask"])}


def flipped(batch):
    return {key: value.flip(1) for key, value in batch.items()}


def test_tokens_are_cut_at_the_side_that_has_none():
    right, left = short_batch(LONG), short_batch(flipped(LONG))

    longest = LONG["attention_mask"].sum(1).argmax()
    assert torch.equal(right["input_ids"][0], LONG["input_ids"][longest, :TOKENS])
    assert right["attention_mask"].sum(1).tolist() == [TOKENS, TOKENS // 2]
    assert torch.equal(left["input_ids"], right["input_ids"].flip(1))
    assert torch.equal(left["attention_mask"], right["attention_mask"].flip(1))


def test_a_batch_without_padding_stays_without_and_a_small_one_is_not_cut():
    assert short_batch(FULL)["attention_mask"].all()
    assert short_batch({key: value[:1] for key, value in FULL.items()}) is None
    assert short_batch({key: value[:2, :TOKENS] for key, value in FULL.items()}) is None


@pytest.mark.parametrize("batch", [LONG, FULL, flipped(LONG)], ids=["right", "full", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_short_batches_have_the_arguments_of_long_ones(family, batch):
    model = tiny_model(family)
    model.config.use_cache = False
    points = resolve(model)

    with torch.no_grad():
        long, short = LayerStack.record(model, points, batch), LayerStack.record_short(model, points, batch)

    assert short.stem.shape == (2, TOKENS, 32)
    assert short._pattern == long._pattern


class Sparse(torch.nn.Module):
    """A BERT that gives up something for good when a sequence is short, as BigBird gives up sparse attention.

    Args:
        change: what happens then, to the model.
    """

    def __init__(self, change):
        super().__init__()
        self.model, self.change = tiny_model("bert"), change
        self.config, self.encoder = self.model.config, self.model.encoder
        self.sparse = True
        self.register_buffer("table", torch.ones(2))

    def forward(self, input_ids, attention_mask):
        if input_ids.shape[1] < 20:
            self.change(self)
        return self.model(input_ids, attention_mask=attention_mask)


def by_attribute(model):
    model.sparse = False


def by_buffer(model):
    model.table = torch.zeros(2)


def by_module(model):
    model.extra = torch.nn.Linear(2, 2)


def by_failing(model):
    raise ValueError("too short")


@pytest.mark.parametrize("change", [by_attribute, by_buffer, by_module, by_failing], ids=lambda change: change.__name__)
def test_a_model_that_changes_when_a_sequence_is_short_is_checked_on_long_ones(change):
    model = Sparse(change).eval()
    before = Changes(model)

    assert LayerStack.record_short(model, resolve(model), LONG) is None
    fp.commutativity(model, [LONG], [(0, 2, 1)], progress=False)
    before.undo()

    assert not before.found


def test_bigbird_keeps_its_sparse_attention():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BigBirdConfig(**sizes, vocab_size=100, block_size=4, num_random_blocks=1)
    model = transformers.BigBirdModel(config).eval()
    long = tiny_batches(sequences=2, length=64, batch_size=2, shortest=50)[0]

    fp.commutativity(model, [long], [(0, 2, 1)], progress=False)

    assert {layer.attention_type for layer in model.encoder.layer} == {"block_sparse"}


@pytest.mark.parametrize("tokens", [10, 30])
def test_what_a_layer_keeps_on_long_sequences_only_is_seen(tokens):
    model = tiny_model("gpt2")
    memory = [0.0]

    def change(_, out):
        kept, memory[0] = memory[0], float(out.mean())
        return out + kept if out.shape[1] > tokens else out

    changed(resolve(model).layers[1], change)

    with pytest.raises(UnsupportedModelError, match="layer 1 gives another output for the same state"):
        fp.commutativity(model, [LONG], [(0, 2, 1)], progress=False)


@pytest.mark.parametrize("sequences", [1, 6])
def test_the_checks_of_an_order_run_cost_what_the_notes_say(sequences):
    model, rows = tiny_model("gpt2"), []
    batches = tiny_batches(sequences=sequences, length=40, batch_size=1, shortest=40)
    batches = batches if sequences == 1 else [LONG]
    for layer in resolve(model).layers:
        layer.register_forward_hook(lambda _, args, out: rows.append(args[0].shape[0] * args[0].shape[1]))

    config = fp.commutativity(model, batches, [(0, 2, 1)], memory=1, progress=False).config

    checks = sum(rows) - config["layer_forwards"] * sequences * 40
    assert checks == 3 * (4 * 40 if sequences == 1 else 3 * 40 + 4 * TOKENS)
