"""Labels of a user: keys that the model reads itself, and integers of every dtype."""

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.testing.tiny_models import tiny_batches, tiny_model


@pytest.mark.parametrize("key", ["token_type_ids", "position_ids", "input_ids", "attention_mask"])
def test_labels_under_the_key_of_an_argument_are_refused(key):
    batches = [{key: batch["input_ids"] % 2} | batch for batch in tiny_batches()]
    with pytest.raises(InputError, match=f"tasks: '{key}' is an argument of BertModel, which would not get it"):
        fp.probe(tiny_model("bert"), batches, tasks=[key], progress=False)


def test_labels_have_any_dtype_of_integers():
    def rows(dtype, key="mine"):
        batches = [batch | {key: (batch["input_ids"] % 2).to(dtype)} for batch in tiny_batches()]
        return [row["r2_cv"] for row in fp.probe(tiny_model("bert"), batches, tasks=[key], progress=False).rows]

    expected = rows(torch.int64)
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.int32):
        assert rows(dtype) == expected, dtype
    assert rows(torch.int64, "labels") == expected
