"""The loss of a masked language model on held-out sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from fastprobe.models.calling import device_of, evaluating
from fastprobe.pretraining.corpus import Corpus

BATCH = 64
"""Sequences in one forward pass."""


@torch.no_grad()
def held_out_loss(model: Any, corpus: Corpus) -> tuple[float, float]:
    """Return the mean cross-entropy of the masked tokens, in nats, and its standard error over sequences.

        loss = sum_s l_s / sum_s m_s
        se   = sqrt(sum_s (l_s - loss m_s)^2 S / (S - 1)) / sum_s m_s

    S sequences; l_s = summed cross-entropy of the masked tokens of sequence s; m_s = their number. The standard error
    is that of a ratio estimator.

    Args:
        model: a ``BertVariantForMaskedLM``.
        corpus: corpus with the held-out sequences.
    """
    losses, counts = [], []
    with evaluating(model):
        for ids, labels in zip(corpus.held_out.split(BATCH), corpus.labels.split(BATCH), strict=True):
            at = (labels != -100).to(device_of(model))
            logits = model.predict(labels.to(at.device), input_ids=ids.to(at.device))
            each = torch.zeros(at.shape, device=at.device)
            each[at] = F.cross_entropy(logits.float(), labels.to(at.device)[at], reduction="none")
            losses.append(each.sum(1).double())
            counts.append(at.sum(1).double())
    loss, count = torch.cat(losses), torch.cat(counts)
    mean = loss.sum() / count.sum()
    sequences = len(loss)
    error = (loss - mean * count).square().sum().sqrt() / count.sum() * (sequences / max(1, sequences - 1)) ** 0.5
    return float(mean), float(error)
