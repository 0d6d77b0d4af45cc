"""``vocabulary_scores`` on the Triton kernels: ``kernels/vocabulary_scores.py``, as an operator of torch."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastprobe.ops import tune
from fastprobe.ops._dispatch import triton as dispatch
from fastprobe.ops._dispatch.trial import near, normal
from fastprobe.ops.vocabulary_scores.api import VocabularyScores, vocabulary_scores


def _refuses(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> str | None:
    return dispatch.refuses_floats((x, weight) if bias is None else (x, weight, bias))


def _passed_over(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> bool:
    return dispatch.passed_over((x,), vocabulary_scores_agree)


@vocabulary_scores.register("triton", unless=_refuses, passed_over=_passed_over)
def launch_vocabulary_scores(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> VocabularyScores:
    """Score with ``kernels/vocabulary_scores.py``, which writes no logit to memory.

    Args:
        x: see :func:`fastprobe.ops.vocabulary_scores.vocabulary_scores`; already checked.
        weight: the same.
        bias: the same.
        target: the same.
    """
    return VocabularyScores(*vocabulary_scores_operator(x, weight, bias, target))


@torch.library.custom_op("fastprobe::triton_vocabulary_scores", mutates_args=())
def vocabulary_scores_operator(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run :func:`launch_vocabulary_scores` as an operator of torch."""
    from fastprobe.kernels import vocabulary_scores as kernels

    if not len(x):
        return _scores_like(x, target)
    launch = functools.partial(
        kernels.launch_vocabulary_scores, x, weight, bias, target, processors=_processors(x.device)
    )
    config = tune.choose(
        dispatch.keyed("vocabulary_scores", x.dtype),
        (*x.shape, len(weight)),
        x.device,
        kernels.configs(dispatch.capability(x.device)),
        lambda config: launch(config=config),
    )
    return launch(config=config)


@vocabulary_scores_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _scores_like(x, target)


def _scores_like(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    one, other = (x.new_empty(len(x), dtype=torch.float32) for _ in range(2))
    return one, other, torch.empty_like(target)


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def vocabulary_scores_agree(device: torch.device) -> bool:
    """Return whether :func:`launch_vocabulary_scores` gives torch's numbers on a device, in float32 and bfloat16."""
    x, weight, (bias,) = normal(device, (70, 72), (150, 72), (1, 150))
    target = torch.arange(70, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        rows, words = x.to(dtype), weight.to(dtype)
        logits = rows.double() @ words.double().mT + bias.to(dtype).double()
        log_sum_exp, at_target, top = vocabulary_scores_operator(rows, words, bias.to(dtype), target)
        found = torch.stack([log_sum_exp, at_target, logits.gather(1, top[:, None])[:, 0]])
        exact = torch.stack([logits.logsumexp(1), logits.gather(1, target[:, None])[:, 0], logits.amax(1)])
        if not near(found, exact):
            return False
    return True
