"""Checks of the batches that a user passes."""

import pytest
import torch

from fastprobe.data.checks import check_repeatable, checked_mask
from fastprobe.errors import InputError

IDS = torch.tensor([[5, 6, 0]])
MASK = torch.tensor([[1, 1, 0]])


def test_a_list_is_repeatable_and_an_iterator_is_not():
    check_repeatable([], "a probe reads them twice")

    with pytest.raises(
        InputError, match="a probe reads them twice, and a generator can be read only once; pass a list"
    ):
        check_repeatable((batch for batch in []), "a probe reads them twice")


def test_the_mask_is_true_at_tokens_that_are_not_padding():
    assert checked_mask({"input_ids": IDS, "attention_mask": MASK}, 0).tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("batch", "key"),
    [
        ({"input_ids": IDS}, "attention_mask"),
        ({"attention_mask": MASK}, "input_ids"),
        ({"input_ids": IDS[0], "attention_mask": MASK}, "input_ids"),
        ({"input_ids": IDS.tolist(), "attention_mask": MASK}, "input_ids"),
    ],
)
def test_a_batch_without_ids_or_mask_is_refused_by_its_number(batch, key):
    with pytest.raises(InputError, match=rf"batches: batch 3 has no \(batch, length\) tensor '{key}'"):
        checked_mask(batch, 3)
