"""Waits of the host for a GPU in an update of moments, counted on a CPU: at most one a batch."""

from collections import Counter

import pytest
import torch
from torch.overrides import TorchFunctionMode

pytest.importorskip("triton")

from fastprobe.ops.gram import cuda_launches, gram_
from fastprobe.ops.gram import triton as gram_triton
from fastprobe.ops.unit_sum import triton as unit_sum_triton
from fastprobe.ops.unit_sum import unit_sum
from fastprobe.regression.moment_plan import MomentPlan
from fastprobe.regression.moments import Moments
from tests.native.test_cuda_launch import library  # noqa: F401

READS = {
    *("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__"),
    *("nonzero", "argwhere", "unique", "unique_consecutive", "bincount", "masked_select", "equal", "is_nonzero"),
}
"""Functions whose result, or its shape, depends on numbers of the device. ``where`` does so with one argument."""


class Waits(TorchFunctionMode):
    """Counter of the functions that would wait for a GPU."""

    def __init__(self):
        self.found = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", str(function))
        masked = name in ("__getitem__", "__setitem__") and any(
            isinstance(part, torch.Tensor) and part.dtype == torch.bool
            for part in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        if name in READS or masked or (name == "where" and len(args) == 1):
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def batch(residual_rows):
    """Return moments of three blocks in two folds, and a batch of rows for them."""
    blocks = {name: residual_rows(300, 24, torch.bfloat16) for name in ("h", "a", "f")}
    plan = MomentPlan.of([("h", "a"), ("a", "f")], dict.fromkeys(blocks, 24), folds=2, cka=[("h", "a")])
    return Moments.zero(plan), blocks


@pytest.fixture
def on_gpu(monkeypatch, library):  # noqa: F811
    """Run unit sums on the Triton kernel, and operators of torch as the functions that they are made of."""
    operator = unit_sum_triton.unit_sum_operator._init_fn
    monkeypatch.setattr(unit_sum_triton, "unit_sum_operator", operator)
    monkeypatch.setattr(gram_triton, "gram_operator", gram_triton.gram_operator._init_fn)
    monkeypatch.setattr(type(unit_sum), "on_if_implemented", lambda operation, backend: operation.on("triton"))
    monkeypatch.setattr(cuda_launches, "PART", 16)


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_batch_waits_for_the_device_once(on_gpu, batch, backend, monkeypatch):
    moments, blocks = batch
    monkeypatch.setitem(gram_._unless, "cuda", lambda *_, **__: None)
    fold = torch.arange(300) // 150
    moments.update_(blocks, fold, backend=backend)  # finds the origins

    with Waits() as waits:
        moments.update_(blocks, fold.clone(), backend=backend)

    assert waits.found == {"tolist": 1}
    assert moments.tokens == 600
