"""The trial of a GPU kernel that ``auto`` makes before it chooses it, here with kernels in Triton's interpreter."""

import pytest
import torch

from fastprobe.ops._dispatch import triton as _triton
from fastprobe.ops.gram import gram_
from fastprobe.ops.gram.trial import error_of_a_trial
from fastprobe.ops.score import RowScores
from fastprobe.ops.score import triton as score_triton

CPU = torch.device("cpu")


def by_definition(blocks, pairs, fold):
    gram_.on("torch")([block._replace(rows=block.rows.float()) for block in blocks], pairs, fold)


def test_the_definition_passes():
    assert error_of_a_trial(by_definition, CPU) < 1e-6


@pytest.mark.parametrize("factor", [0.0, 1 + 1e-5, float("nan")])
def test_wrong_sums_fail(factor):
    def wrong(blocks, pairs, fold):
        by_definition(blocks, pairs, fold)
        pairs[1].gram.mul_(factor)

    assert error_of_a_trial(wrong, CPU) > 1e-6


@pytest.mark.parametrize(("right", "taken"), [(True, True), (False, False)])
def test_auto_takes_a_gpu_kernel_that_agrees(right, taken):
    on_gpu = type("OnGpu", (), {"device": torch.device("cuda:0")})()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_triton, "may_wait_for", lambda tensor: True)
        patch.setattr(_triton.trial_process, "result_of", lambda trial, device: trial(device))
        assert _triton.passed_over([on_gpu], lambda device: right) != taken

        patch.setattr(_triton, "may_wait_for", lambda tensor: False)  # while a graph is being made
        assert not _triton.passed_over([on_gpu], lambda device: right)


@pytest.mark.skipif(not _triton.interpreted() or _triton.refuses([torch.ones(1)], []), reason="no interpreter")
def test_score_agrees_in_the_interpreter(monkeypatch):
    assert score_triton.score_agrees(CPU)

    monkeypatch.setattr(score_triton, "launch_score", lambda x, *_: RowScores(*torch.ones(4, len(x))))
    assert not score_triton.score_agrees(CPU)
