"""What a language-model head says of tokens, without the logits of a whole vocabulary in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch import triton as _triton
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops.products import linear, matmul
from fastprobe.ops.vocabulary_scores import triton

SLICE = 2**20
"""Logits that are made at a time: few enough to be in a CPU's cache when they are read again."""

SLICE_ON_A_GPU = 2**26
"""There a slice is a launch, and products of few words would leave most of the card idle."""


class VocabularyScores(NamedTuple):
    """What :func:`vocabulary_scores` returns, ``(N,)`` each, float32 but for ``top``."""

    log_sum_exp: Tensor
    at_target: Tensor  # logit of the target; 0 where there is none
    top: Tensor  # int64: where the largest logit is


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> None:
    if x.ndim != 2 or weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise ShapeError(
            f"vocabulary_scores: x must be (N, D) and weight (V, D), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if not len(weight):
        raise ShapeError(f"vocabulary_scores: weight must have a row a word, got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"vocabulary_scores: bias must be ({len(weight)},), got {tuple(bias.shape)}")
    if target.shape != x.shape[:1] or target.dtype != torch.int64:
        raise ShapeError(
            f"vocabulary_scores: target must be ({len(x)},) int64, got {tuple(target.shape)} {target.dtype}"
        )


@operation(check=_check)
def vocabulary_scores(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> VocabularyScores:
    """Log-sum-exp, target logit and top token of ``l = x weight^T + bias``.

        log_sum_exp[n] = log sum_v exp l[n, v]

    The cross-entropy is ``log_sum_exp - at_target``. The vocabulary goes by in slices, and sums of exponentials are
    kept about the largest logit so far. Logits are float32 whatever the rows are.

    Args:
        x: ``(N, D)``, what the last product of the head gets.
        weight: ``(V, D)`` of that product, the same dtype.
        bias: ``(V,)``, or ``None``.
        target: ``(N,)`` int64; a negative number where there is none.

    Raises:
        ShapeError: an argument does not match ``x`` or ``weight``, or there are no words.
    """
    rows = torch.arange(len(x), device=x.device)
    most = torch.full((len(x),), -torch.inf, device=x.device)
    total, at_target, top = torch.zeros_like(most), torch.zeros_like(most), torch.zeros_like(rows)
    for start, _, logits in _slices(x, weight, bias):
        largest, place = logits.max(1)
        top = torch.where(largest > most, place + start, top)
        highest = torch.maximum(most, largest)
        inside = rows[(target >= start) & (target < start + logits.shape[1])]
        at_target[inside] = logits[inside, target[inside] - start]
        total = total * (most - highest).exp() + logits.sub_(highest[:, None]).exp_().sum(1)
        most = highest
    return VocabularyScores(most + total.log(), at_target, top)


def _triton_refuses(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> str | None:
    return _triton.refuses_floats((x, weight) if bias is None else (x, weight, bias))


@vocabulary_scores.register(
    "triton",
    unless=_triton_refuses,
    passed_over=lambda x, *_: _triton.passed_over((x,), triton.vocabulary_scores_agree),
)
def _triton_kernel(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> VocabularyScores:
    """``kernels/vocabulary_scores.py``: no logit leaves the chip."""
    return VocabularyScores(*triton.vocabulary_scores(x, weight, bias, target))


class VocabularyBaseline(NamedTuple):
    """What tokens said before something was changed, and so much of their distribution as a divergence needs."""

    x: Tensor  # (N, D)
    log_sum_exp: Tensor  # (N,)
    mean: Tensor  # (N, D) float32: sum_v p[n, v] weight[v]

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, bias: Tensor | None, log_sum_exp: Tensor) -> VocabularyBaseline:
        """The mean row of ``weight`` under ``p[n] = softmax(x[n] weight^T + bias)``: two products, a slice at a time.

        Args:
            x: ``(N, D)``, see :func:`vocabulary_scores`.
            weight: ``(V, D)``.
            bias: ``(V,)``, or ``None``.
            log_sum_exp: ``(N,)``, what :func:`vocabulary_scores` says of ``x``.
        """
        mean = torch.zeros(x.shape, device=x.device)
        for _, part, logits in _slices(x, weight, bias):
            mean += matmul(logits.sub_(log_sum_exp[:, None]).exp_(), part)
        return cls(x, log_sum_exp, mean)

    def divergence(self, x: Tensor, log_sum_exp: Tensor) -> Tensor:
        """How far the distribution of each token is from this one, ``(N,)`` float32.

            KL[n] = sum_v p[n, v] (log p[n, v] - log q[n, v])
                  = <self.x[n] - x[n], mean[n]> - self.log_sum_exp[n] + log_sum_exp[n]

        Logits differ by ``<self.x - x, weight[v]>``, so their mean under p needs no logits: what many changed states
        have in common is the one mean row of the baseline.

        Args:
            x: ``(N, D)``, what the head gets of the changed tokens.
            log_sum_exp: ``(N,)``, what :func:`vocabulary_scores` says of it.
        """
        gap = torch.linalg.vecdot(self.x.double() - x.double(), self.mean.double())
        return (gap - self.log_sum_exp.double() + log_sum_exp.double()).float()


def _slices(x: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The vocabulary part by part: its first word, its rows of the weight and the logits, float32."""
    x = x.float()
    most = SLICE if x.device.type == "cpu" else SLICE_ON_A_GPU
    size = max(1, min(len(weight), most // max(1, len(x))))
    for start in range(0, len(weight), size):
        part = weight[start : start + size].float()
        some = None if bias is None else bias[start : start + size].float()
        yield start, part, linear(x, part, some)
