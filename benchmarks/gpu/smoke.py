"""Smallest call of one backend, checked against float64: ``python -m benchmarks.gpu.smoke cuda``.

``benchmarks.gpu.run`` starts one process a backend, so that a kernel that hangs or faults harms no other.
"""

from __future__ import annotations

import sys

import torch

from fastprobe.ops._dispatch import trial_process
from fastprobe.ops.encoder import triton as encoder
from fastprobe.ops.gram import cuda, triton
from fastprobe.ops.score import triton as score
from fastprobe.ops.unit_sum import triton as unit_sum
from fastprobe.ops.vocabulary_scores import triton as vocabulary

ERRORS = {"cuda": cuda.gram_error, "exact": cuda.exact_gram_error}
"""Backend -> trial that returns its error."""

AGREE = {
    "triton": triton.gram_agrees,
    "unit_sum": unit_sum.unit_sum_agrees,
    "score": score.score_agrees,
    "add_norm": encoder.add_norm_agrees,
    "bias_gelu": encoder.bias_gelu_agrees,
    "vocabulary": vocabulary.vocabulary_scores_agree,
}
"""Backend or operation -> trial that returns whether it agrees with torch."""


def smoke(name: str, device: torch.device) -> str:
    """Return why a backend is not to be used, or "". Its result is kept, so that later steps need no trial."""
    if name in ERRORS and cuda.library() is None:
        return "fastprobe._cuda was not built"
    trial = ERRORS[name] if name in ERRORS else AGREE[name]
    result = trial(device)
    trial_process.keep(trial, device, float(result))
    print(f"{name}: {result}", flush=True)
    if name in AGREE:
        return "" if result else f"{name}: it disagrees with torch"
    return "" if result <= cuda.GATE[name == "exact"] else f"{name}: the error is {result:.1e}"


if __name__ == "__main__":
    sys.exit(smoke(sys.argv[1], torch.device("cuda:0" if torch.cuda.is_available() else "cpu")) or None)
