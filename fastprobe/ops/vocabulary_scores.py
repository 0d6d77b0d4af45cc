"""What a language-model head says of tokens, without the logits of a whole vocabulary in memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastprobe.errors import ShapeError
from fastprobe.ops._operation import operation
from fastprobe.ops._platform import linear

SLICE = 2**20
"""Logits that are made at a time: few enough to be in a cache when they are read again."""


class VocabularyScores(NamedTuple):
    """What :func:`vocabulary_scores` returns, ``(N,)`` each, float32 but for ``top``."""

    log_sum_exp: Tensor
    at_target: Tensor  # logit of the target; 0 where there is none
    top: Tensor  # int64: where the largest logit is
    kl: Tensor  # zero without a baseline


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, own: tuple[Tensor, Tensor] | None = None
) -> None:
    if x.ndim != 2 or weight.ndim != 2 or weight.shape[1] != x.shape[1]:
        raise ShapeError(
            f"vocabulary_scores: x must be (N, D) and weight (V, D), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(f"vocabulary_scores: bias must be ({len(weight)},), got {tuple(bias.shape)}")
    if target.shape != x.shape[:1] or target.dtype != torch.int64:
        raise ShapeError(
            f"vocabulary_scores: target must be ({len(x)},) int64, got {tuple(target.shape)} {target.dtype}"
        )
    if own is not None and (own[0].shape != x.shape or own[1].shape != x.shape[:1]):
        raise ShapeError(
            f"vocabulary_scores: own must be {tuple(x.shape)} and ({len(x)},), "
            f"got {tuple(own[0].shape)} and {tuple(own[1].shape)}"
        )


@operation(check=_check)
def vocabulary_scores(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, own: tuple[Tensor, Tensor] | None = None
) -> VocabularyScores:
    """Log-sum-exp, target logit and top token of ``x weight^T + bias``, and the divergence from a baseline.

        l = x weight^T + bias, m = own[0] weight^T + bias
        log_sum_exp[n] = log sum_v exp l[n, v]
        kl[n] = sum_v p[n, v] (log p[n, v] - log softmax(l[n])[v])    with p = softmax(m)

    The cross-entropy is ``log_sum_exp - at_target``. The vocabulary goes by in slices: sums of exponentials are kept
    about the largest logit so far, and those of the baseline are made again beside them instead of being stored.

    Args:
        x: ``(N, D)``, what the last product of the head gets.
        weight: ``(V, D)`` of that product, the same dtype.
        bias: ``(V,)``, or ``None``.
        target: ``(N,)`` int64; a negative number where there is none.
        own: x and log_sum_exp of the baseline, ``(N, D)`` and ``(N,)``.

    Raises:
        ShapeError: an argument does not match ``x`` or ``weight``.
    """
    rows = torch.arange(len(x), device=x.device)
    most = torch.full((len(x),), -torch.inf, device=x.device)
    total, at_target = torch.zeros_like(most), torch.zeros_like(most)
    gap, top = torch.zeros_like(most, dtype=torch.float64), torch.zeros_like(rows)
    size = max(1, min(len(weight), SLICE // max(1, len(x))))
    for start in range(0, len(weight), size):
        part, some = weight[start : start + size], None if bias is None else bias[start : start + size]
        logits = linear(x, part, some).float()
        largest, place = logits.max(1)
        top = torch.where(largest > most, place + start, top)
        highest = torch.maximum(most, largest)
        inside = rows[(target >= start) & (target < start + len(part))]
        at_target[inside] = logits[inside, target[inside] - start]
        if own is not None:
            m = linear(own[0], part, some).float()
            gap += torch.linalg.vecdot((m - own[1][:, None]).exp_(), m.sub_(logits))
        total = total * (most - highest).exp() + logits.sub_(highest[:, None]).exp_().sum(1)
        most = highest
    log_sum_exp = most + total.log()
    kl = torch.zeros_like(most) if own is None else (gap - own[1].double() + log_sum_exp.double()).float()
    return VocabularyScores(log_sum_exp, at_target, top, kl)
