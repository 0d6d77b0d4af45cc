"""``vocabulary_scores`` in Triton, as an operator of torch."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from fastprobe.ops import tune
from fastprobe.ops._dispatch.trial import near, normal
from fastprobe.ops._dispatch.triton import capability, keyed


@torch.library.custom_op("fastprobe::triton_vocabulary_scores", mutates_args=())
def vocabulary_scores(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``kernels/vocabulary_scores.py`` as an operator of torch: log-sum-exp, logit of the target, top word."""
    from fastprobe.kernels import vocabulary_scores as kernels

    if not len(x):
        return _scores_like(x, target)
    launch = functools.partial(kernels.vocabulary_scores, x, weight, bias, target, processors=_processors(x.device))
    config = tune.choose(
        keyed("vocabulary_scores", x.dtype),
        (*x.shape, len(weight)),
        x.device,
        kernels.configs(capability(x.device)),
        lambda config: launch(config=config),
    )
    return launch(config=config)


@vocabulary_scores.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _scores_like(x, target)


def _scores_like(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    one, other = (x.new_empty(len(x), dtype=torch.float32) for _ in range(2))
    return one, other, torch.empty_like(target)


@functools.cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache
def vocabulary_scores_agree(device: torch.device) -> bool:
    """Whether :func:`vocabulary_scores` gives torch's numbers on a device, of float32 rows and of 16-bit ones."""
    x, weight, (bias,) = normal(device, (70, 72), (150, 72), (1, 150))
    target = torch.arange(70, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        rows, words = x.to(dtype), weight.to(dtype)
        logits = rows.double() @ words.double().mT + bias.to(dtype).double()
        log_sum_exp, at_target, top = vocabulary_scores(rows, words, bias.to(dtype), target)
        found = torch.stack([log_sum_exp, at_target, logits.gather(1, top[:, None])[:, 0]])
        exact = torch.stack([logits.logsumexp(1), logits.gather(1, target[:, None])[:, 0], logits.amax(1)])
        if not near(found, exact):
            return False
    return True
