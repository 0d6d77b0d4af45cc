"""Metrics that a user passes by mistake."""

import pytest
import torch

import fastprobe as fp
from fastprobe.errors import InputError
from fastprobe.testing.tiny_models import tiny_batches, tiny_model

RETURNS = {
    "one number": lambda state, baseline: (state - baseline).norm(),
    "one number a sequence": lambda state, baseline: (state - baseline).norm(dim=(1, 2)),
    "a state": lambda state, baseline: state - baseline,
    "an array": lambda state, baseline: (state - baseline).norm(dim=2).numpy(),
    "nothing": lambda state, baseline: None,
    "a float": lambda state, baseline: 1.0,
}


@pytest.mark.parametrize("name", RETURNS)
def test_a_metric_without_a_number_for_each_token_is_refused(name):
    with pytest.raises(InputError, match=r"metrics: mine must return a tensor of one number for each token, \(6, 14\)"):
        fp.commutativity(tiny_model("bert"), tiny_batches(), [], metrics={"mine": RETURNS[name]}, progress=False)


@pytest.mark.parametrize("metrics", [["cosine"], {"mine": 3}, "cosine"])
def test_metrics_that_are_no_functions_are_refused(metrics):
    with pytest.raises(InputError, match="metrics: must be a dict of names and functions"):
        fp.commutativity(tiny_model("bert"), tiny_batches(), [], metrics=metrics, progress=False)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64])
def test_a_metric_has_any_dtype(dtype):
    metrics = {"mine": lambda state, baseline: torch.ones(state.shape[:2], dtype=dtype)}
    rows = fp.commutativity(tiny_model("bert"), tiny_batches(), [], metrics=metrics, progress=False).rows
    assert rows[0]["mine"] == 1
