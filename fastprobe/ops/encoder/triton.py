"""The Triton kernels of an encoder layer as operators of torch (``_dispatch/triton.py`` says why)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.ops import tune
from fastprobe.ops._dispatch.trial import near, normal
from fastprobe.ops._dispatch.triton import capability, keyed


@torch.library.custom_op("fastprobe::triton_add_norm", mutates_args=())
def add_norm_operator(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Run ``kernels/add_norm.py`` on rows ``(N, D)``, each read from memory once."""
    from fastprobe.kernels import add_norm as kernels

    if not x.numel():
        return torch.empty_like(x)
    config = tune.choose(
        keyed("add_norm", x.dtype),
        x.shape,
        x.device,
        kernels.configs(capability(x.device)),
        lambda config: kernels.launch_add_norm(x, residual, weight, bias, eps, config=config),
    )
    return kernels.launch_add_norm(x, residual, weight, bias, eps, config=config)


@add_norm_operator.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("fastprobe::triton_bias_gelu_", mutates_args=("x",))
def bias_gelu_operator(x: Tensor, bias: Tensor) -> None:
    """Run ``kernels/bias_gelu.py`` on ``x``, ``(N, D)``, in place and in one pass."""
    from fastprobe.kernels import bias_gelu as kernels

    if not x.numel():
        return
    config = tune.choose(
        keyed("bias_gelu_", x.dtype),
        x.shape,
        x.device,
        kernels.configs(capability(x.device)),
        lambda config: kernels.launch_bias_gelu(x.clone(), bias, config=config),
    )
    kernels.launch_bias_gelu(x, bias, config=config)


@bias_gelu_operator.register_fake
def _(x: Tensor, bias: Tensor) -> None:
    return None


def add_norm_agrees(device: torch.device) -> bool:
    """Return whether :func:`add_norm_operator` gives the numbers of torch on a device."""
    x, residual, (weight, bias) = normal(device, (70, 200), (70, 200), (2, 200))
    exact = F.layer_norm((x + residual).double(), (200,), weight.double(), bias.double(), 1e-5)
    return near(add_norm_operator(x, residual, weight, bias, 1e-5), exact)


def bias_gelu_agrees(device: torch.device) -> bool:
    """Return whether :func:`bias_gelu_operator` gives the numbers of torch on a device."""
    x, (bias,) = normal(device, (70, 200), (1, 200))
    exact = F.gelu((x + bias).double())
    bias_gelu_operator(x, bias)
    return near(x, exact)
