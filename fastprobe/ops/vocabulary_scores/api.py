"""The operation ``vocabulary_scores``: its arguments, their check, and its definition in plain torch.

It computes what is needed of the output of a language-model head without the logits of a whole vocabulary in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastprobe.errors import ShapeError
from fastprobe.ops._dispatch.operation import operation
from fastprobe.ops.products import linear, matmul

SLICE = 2**20
"""Logits that are computed at a time on a CPU: few enough to be read again from a cache."""

SLICE_ON_A_GPU = 2**26
"""Logits that are computed at a time on a GPU, where each slice costs a launch."""


class VocabularyScores(NamedTuple):
    """Result of :func:`vocabulary_scores`, ``(N,)`` each, float32 except ``top``."""

    log_sum_exp: Tensor
    at_target: Tensor  # logit of the target; 0 where there is none
    top: Tensor  # int64: the token with the largest logit


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> None:
    if x.ndim != 2 or weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise ShapeError(
            f"vocabulary_scores: x must be (N, D) and weight (V, D), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if not len(weight):
        raise ShapeError(f"vocabulary_scores: weight must have at least one row, got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"vocabulary_scores: bias must be ({len(weight)},), got {tuple(bias.shape)}")
    if target.shape != x.shape[:1] or target.dtype != torch.int64:
        raise ShapeError(
            f"vocabulary_scores: target must be ({len(x)},) int64, got {tuple(target.shape)} {target.dtype}"
        )


@operation(check=_check)
def vocabulary_scores(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> VocabularyScores:
    """Return the log-sum-exp, the target's logit and the top token of ``l = x weight^T + bias``.

        log_sum_exp[n] = log sum_v exp l[n, v]

    The cross-entropy is ``log_sum_exp - at_target``. The vocabulary is processed in slices, and sums of exponentials
    are kept relative to the largest logit so far. Logits are float32 whatever the dtype of the rows.

    Args:
        x: ``(N, D)``, the input of the head's last linear layer.
        weight: ``(V, D)`` of that layer, the same dtype.
        bias: ``(V,)``, or ``None``.
        target: ``(N,)`` int64; a negative number where there is none.

    Raises:
        ShapeError: an argument does not match ``x`` or ``weight``, or ``weight`` has no rows.
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


class VocabularyBaseline(NamedTuple):
    """The predictions of an unchanged model, in the form that :meth:`divergence` needs."""

    x: Tensor  # (N, D)
    log_sum_exp: Tensor  # (N,)
    mean: Tensor  # (N, D) float32: sum_v p[n, v] weight[v]

    @classmethod
    def of(cls, x: Tensor, weight: Tensor, bias: Tensor | None, log_sum_exp: Tensor) -> VocabularyBaseline:
        """Compute the mean row of ``weight`` under ``p[n] = softmax(x[n] weight^T + bias)``, slice by slice.

        Args:
            x: ``(N, D)``, see :func:`vocabulary_scores`.
            weight: ``(V, D)``.
            bias: ``(V,)``, or ``None``.
            log_sum_exp: ``(N,)``, from :func:`vocabulary_scores` of ``x``.
        """
        mean = torch.zeros(x.shape, device=x.device)
        for _, part, logits in _slices(x, weight, bias):
            mean += matmul(logits.sub_(log_sum_exp[:, None]).exp_(), part)
        return cls(x, log_sum_exp, mean)

    def divergence(self, x: Tensor, log_sum_exp: Tensor) -> Tensor:
        """Return the divergence of the baseline's distribution of each token from a changed model's, ``(N,)`` float32.

            KL[n] = sum_v p[n, v] (log p[n, v] - log q[n, v])
                  = <self.x[n] - x[n], mean[n]> - self.log_sum_exp[n] + log_sum_exp[n]

        Logits differ by ``<self.x - x, weight[v]>``, so that their mean under p needs no logits: many changed states
        share the one mean row of the baseline.

        Args:
            x: ``(N, D)``, the input of the head's last linear layer in the changed model.
            log_sum_exp: ``(N,)``, from :func:`vocabulary_scores` of ``x``.
        """
        gap = torch.linalg.vecdot(self.x.double() - x.double(), self.mean.double())
        return (gap - self.log_sum_exp.double() + log_sum_exp.double()).float()


def _slices(x: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield the vocabulary in slices: the first token, the rows of the weight and the logits, float32."""
    x = x.float()
    most = SLICE if x.device.type == "cpu" else SLICE_ON_A_GPU
    size = max(1, min(len(weight), most // max(1, len(x))))
    for start in range(0, len(weight), size):
        part = weight[start : start + size].float()
        some = None if bias is None else bias[start : start + size].float()
        yield start, part, linear(x, part, some)
