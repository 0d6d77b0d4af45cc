"""Scans of models whose passes differ: in time, at random, or with the other sequences of a batch."""

import pytest
import torch
from torch import nn

import fastprobe as fp
from fastprobe.errors import UnsupportedModelError
from fastprobe.models.repeated_passes import check_repeated_passes
from fastprobe.models.resolve import resolve
from fastprobe.testing.tiny_models import FAMILIES, tiny_batches, tiny_model


class Wrapped(nn.Module):
    """A module whose output another function changes."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change, self.calls = inner, change, 0

    def forward(self, x):
        self.calls += 1
        return self.change(self, self.inner(x))


AGAIN = {
    "counts its calls": lambda module, y: y * (1 + module.calls / 100),
    "random": lambda module, y: y + 0.1 * torch.randn(y.shape),
    "dropout that stays on": lambda module, y: nn.functional.dropout(y, 0.1),
}
TOGETHER = {
    "norm over the batch": lambda module, y: y / y.std(),
    "mean over the batch": lambda module, y: y - y.mean(0, keepdim=True),
    "capacity": lambda module, y: y * (torch.arange(y.flatten(0, 1).shape[0]) < 9).view(y.shape[:2])[..., None],
}


def model_with(family, change):
    model = tiny_model(family)
    layer = model.encoder.layer[1] if family == "bert" else model.model.layers[1]
    if family == "bert":
        layer.intermediate.dense = Wrapped(layer.intermediate.dense, change)
    else:
        layer.mlp.up_proj = Wrapped(layer.mlp.up_proj, change)
    return model


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("name", AGAIN)
def test_a_scan_of_layers_that_change_between_passes_is_refused(name, family):
    model = model_with(family, AGAIN[name])
    with pytest.raises(UnsupportedModelError, match="layer 1 gives another output when the same batch runs again"):
        fp.linearity(model, tiny_batches(), elements=["layer"], progress=False)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("name", TOGETHER)
def test_sequences_that_depend_on_each_other_are_read_once(name, family):
    model = model_with(family, TOGETHER[name])
    scan = fp.linearity(model, tiny_batches(), elements=["layer"], score_sequences="all", progress=False)

    assert scan.config["runner"].endswith("; layer 1 depends on the other sequences of a batch, so no sample is read)")
    assert [row["cosine"] for row in scan.rows] == [None] * 3
    once = fp.linearity(model, tiny_batches(), elements=["layer"], score_sequences=0, progress=False)
    assert [row["r2_cv"] for row in scan.rows] == [row["r2_cv"] for row in once.rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_family_gives_the_same_states_again(dtype):
    for family in FAMILIES:
        model = tiny_model(family, dtype=dtype)
        assert check_repeated_passes(model, resolve(model), tiny_batches(batch_size=2)[0], 2) == ""
