"""The kernels of an encoder's layers and head in Triton, as operators of torch: see ``_triton.py``."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.ops import _triton, _tuning

GATE = 1e-5
"""Largest error of a trial, of the size of what is computed."""


def refuses(tensors: Sequence[Tensor]) -> str | None:
    """Why the kernels cannot run on these tensors, all of one dtype, or ``None``."""
    if len({tensor.dtype for tensor in tensors}) > 1:
        return f"tensors are of several dtypes: {', '.join(sorted({str(tensor.dtype) for tensor in tensors}))}"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return "it has no derivative"
    return _triton.refuses(tensors, tensors)


@torch.library.custom_op("fastprobe::triton_add_norm", mutates_args=())
def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``kernels/add_norm.py`` as an operator of torch."""
    from fastprobe.kernels import add_norm as kernels

    if not x.numel():
        return torch.empty_like(x)
    config = _tuning.choose(
        _triton.keyed("add_norm", x.dtype),
        x.shape,
        x.device,
        kernels.configs(_triton.capability(x.device)),
        lambda config: kernels.add_norm(x, residual, weight, bias, eps, config=config),
    )
    return kernels.add_norm(x, residual, weight, bias, eps, config=config)


@add_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("fastprobe::triton_bias_gelu_", mutates_args=("x",))
def bias_gelu_(x: Tensor, bias: Tensor) -> None:
    """``kernels/bias_gelu.py`` as an operator of torch."""
    from fastprobe.kernels import bias_gelu as kernels

    if not x.numel():
        return
    config = _tuning.choose(
        _triton.keyed("bias_gelu_", x.dtype),
        x.shape,
        x.device,
        kernels.configs(_triton.capability(x.device)),
        lambda config: kernels.bias_gelu_(x.clone(), bias, config=config),
    )
    kernels.bias_gelu_(x, bias, config=config)


@bias_gelu_.register_fake
def _(x: Tensor, bias: Tensor) -> None:
    return None


@torch.library.custom_op("fastprobe::triton_vocabulary_scores", mutates_args=())
def vocabulary_scores(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``kernels/vocabulary_scores.py`` as an operator of torch: log-sum-exp, logit of the target, top word."""
    from fastprobe.kernels import vocabulary_scores as kernels

    if not len(x):
        return _scores_like(x, target)
    launch = functools.partial(kernels.vocabulary_scores, x, weight, bias, target, processors=_processors(x.device))
    config = _tuning.choose(
        _triton.keyed("vocabulary_scores", x.dtype),
        (*x.shape, len(weight)),
        x.device,
        kernels.configs(_triton.capability(x.device)),
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
def add_norm_agrees(device: torch.device) -> bool:
    """Whether :func:`add_norm` gives torch's numbers on a device."""
    x, residual, (weight, bias) = _normal(device, (70, 200), (70, 200), (2, 200))
    exact = F.layer_norm((x + residual).double(), (200,), weight.double(), bias.double(), 1e-5)
    return _near(add_norm(x, residual, weight, bias, 1e-5), exact)


@functools.cache
def bias_gelu_agrees(device: torch.device) -> bool:
    """Whether :func:`bias_gelu_` gives torch's numbers on a device."""
    x, (bias,) = _normal(device, (70, 200), (1, 200))
    exact = F.gelu((x + bias).double())
    bias_gelu_(x, bias)
    return _near(x, exact)


@functools.cache
def vocabulary_scores_agree(device: torch.device) -> bool:
    """Whether :func:`vocabulary_scores` gives torch's numbers on a device, of float32 rows and of 16-bit ones."""
    x, weight, (bias,) = _normal(device, (70, 72), (150, 72), (1, 150))
    target = torch.arange(70, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        rows, words = x.to(dtype), weight.to(dtype)
        logits = rows.double() @ words.double().mT + bias.to(dtype).double()
        log_sum_exp, at_target, top = vocabulary_scores(rows, words, bias.to(dtype), target)
        found = torch.stack([log_sum_exp, at_target, logits.gather(1, top[:, None])[:, 0]])
        exact = torch.stack([logits.logsumexp(1), logits.gather(1, target[:, None])[:, 0], logits.amax(1)])
        if not _near(found, exact):
            return False
    return True


def _normal(device: torch.device, *shapes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(*shape, device=device, generator=generator) for shape in shapes]


def _near(got: Tensor, exact: Tensor) -> bool:
    return bool((got.double() - exact).abs().max() <= GATE * exact.abs().max())
