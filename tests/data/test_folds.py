"""Folds by sequence."""

import torch

from fastprobe.data.folds import fold_of_sequences


def test_sequence_s_is_in_fold_s_mod_folds_with_all_its_tokens():
    fold = fold_of_sequences(3, (4, 2), 5, torch.device("cpu"))

    assert fold.tolist() == [[3, 3], [4, 4], [0, 0], [1, 1]]
    assert fold.dtype == torch.int64


def test_folds_continue_over_batches():
    first, second = (fold_of_sequences(start, (7,), 5, torch.device("cpu")) for start in (0, 7))

    assert torch.cat([first, second]).tolist() == [s % 5 for s in range(14)]
