"""Arguments of batches in any form that a model takes: the same numbers, or one line."""

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.models.batch_arguments import OPTIONS, REFUSED, plain_arguments
from fastprobe.testing.tiny_models import tiny_batches, tiny_model
from tests.test_bad_inputs import left_padded
from tests.test_odd_batches import VERBS, scores

LENGTH = 6
PLAIN = tiny_batches(sequences=18, length=LENGTH, batch_size=LENGTH, shortest=3)
"""Batches of as many sequences as tokens, so that a tensor of one row looks like one of one entry a sequence."""


def changed(**arguments):
    """Return the batches with further arguments. A function gets the batch."""
    return [b | {key: value(b) if callable(value) else value for key, value in arguments.items()} for b in PLAIN]


FORMS = {
    "cache on": changed(use_cache=True),
    "cache off": changed(use_cache=False),
    "tuples": changed(return_dict=False),
    "all states": changed(output_hidden_states=True),
    "the last logit": changed(logits_to_keep=1),
    "positions of one row": changed(position_ids=torch.arange(LENGTH)),
    "ids of 16 bits": changed(input_ids=lambda b: b["input_ids"].short()),
    "ids of 8 bits": changed(input_ids=lambda b: b["input_ids"].to(torch.uint8)),
    "floating mask": changed(attention_mask=lambda b: b["attention_mask"].float()),
    "half mask": changed(attention_mask=lambda b: b["attention_mask"].half()),
    "boolean mask": changed(attention_mask=lambda b: b["attention_mask"].bool()),
    "mask of 8 bits": changed(attention_mask=lambda b: b["attention_mask"].to(torch.uint8)),
}


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("verb", ["linearity", "commutativity"])
def test_the_form_of_an_argument_changes_no_number(verb, family):
    model = tiny_model(family)
    expected = scores(verb, model, PLAIN)

    for name, batches in FORMS.items():
        found = scores(verb, model, batches)
        torch.testing.assert_close(
            found, expected, atol=1e-4, rtol=1e-3, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("verb", ["commutator", "ablation", "probe"])
def test_every_verb_reads_its_batches_in_one_form(verb):
    model = tiny_model("bert-mlm")
    mixed = [FORMS[name][k] for k, name in enumerate(("tuples", "positions of one row", "floating mask"))]
    if verb == "ablation":  # which outputs resample takes depends on the arguments of a batch
        mixed = FORMS["floating mask"]

    torch.testing.assert_close(scores(verb, model, mixed), scores(verb, model, PLAIN), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("key", sorted(OPTIONS))
def test_options_of_the_output_are_left_out(key):
    assert plain_arguments(PLAIN[0] | {key: True}, 0, ()).keys() == PLAIN[0].keys()


def test_texts_are_left_out_and_objects_refused():
    assert plain_arguments(PLAIN[0] | {"text": ["a"] * LENGTH}, 0, ()).keys() == PLAIN[0].keys()
    for value in ({}, [1], object()):
        with pytest.raises(InputError, match="batches: extra of batch 0 must be a tensor or a constant, got a"):
            plain_arguments(PLAIN[0] | {"extra": value}, 0, ())


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_arguments_of_a_whole_call_are_refused(key):
    with pytest.raises(InputError, match=f"batches: {key} of batch 3 must be left out; "):
        plain_arguments(PLAIN[0] | {key: torch.zeros(LENGTH)}, 3, ())
    assert key in plain_arguments(PLAIN[0] | {key: None}, 3, ())


@pytest.mark.parametrize("shape", [(), (3,), (LENGTH + 1, 2), (3, LENGTH, LENGTH)])
def test_a_tensor_without_an_entry_a_sequence_is_refused(shape):
    with pytest.raises(InputError, match="batches: extra of batch 0 has the shape"):
        plain_arguments(PLAIN[0] | {"extra": torch.zeros(shape)}, 0, ())


def test_positions_of_several_axes_are_refused():
    positions = torch.zeros(LENGTH, LENGTH, LENGTH, dtype=torch.long)
    with pytest.raises(InputError, match="position_ids of batch 0 has the shape"):
        plain_arguments(PLAIN[0] | {"position_ids": positions}, 0, ())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_padding_on_the_left_of_a_later_batch_changes_nothing(family):
    model = tiny_model(family)
    batches = [PLAIN[0], *left_padded(PLAIN[1:])]

    for verb in ("linearity", "commutativity"):
        torch.testing.assert_close(scores(verb, model, batches), scores(verb, model, PLAIN), atol=2e-3, rtol=1e-2)


class OtherEachTime:
    """Batches that differ at every reading, as those of a loader that shuffles or masks at random."""

    def __init__(self):
        self.readings = 0

    def __iter__(self):
        self.readings += 1
        return iter(tiny_batches(seed=self.readings))


class OnlyOnce:
    """Batches that are gone after one reading, though this is no iterator."""

    def __init__(self):
        self.rest = iter(PLAIN)

    def __iter__(self):
        return self.rest


@pytest.mark.parametrize("batches", [OtherEachTime, OnlyOnce])
@pytest.mark.parametrize("verb", ["ablation", "probe"])
def test_batches_that_differ_at_the_second_reading_are_refused(verb, batches):
    with pytest.raises(InputError, match=r"first reading.* read more than once, so .*pass list\(batches\)"):
        VERBS[verb](tiny_model("bert"), batches())


def test_shuffled_batches_may_be_read_once():
    assert len(fp.commutativity(tiny_model("bert"), OtherEachTime(), [], progress=False).rows) == 1
