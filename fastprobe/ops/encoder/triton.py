"""The kernels of an encoder's layers and head in Triton, as operators of torch: see ``py``."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from fastprobe.ops import tune
from fastprobe.ops._dispatch.trial import near, normal
from fastprobe.ops._dispatch.triton import capability, keyed


@torch.library.custom_op("fastprobe::triton_add_norm", mutates_args=())
def add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """``kernels/add_norm.py`` as an operator of torch."""
    from fastprobe.kernels import add_norm as kernels

    if not x.numel():
        return torch.empty_like(x)
    config = tune.choose(
        keyed("add_norm", x.dtype),
        x.shape,
        x.device,
        kernels.configs(capability(x.device)),
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
    config = tune.choose(
        keyed("bias_gelu_", x.dtype),
        x.shape,
        x.device,
        kernels.configs(capability(x.device)),
        lambda config: kernels.bias_gelu_(x.clone(), bias, config=config),
    )
    kernels.bias_gelu_(x, bias, config=config)


@bias_gelu_.register_fake
def _(x: Tensor, bias: Tensor) -> None:
    return None


@functools.cache
def add_norm_agrees(device: torch.device) -> bool:
    """Whether :func:`add_norm` gives torch's numbers on a device."""
    x, residual, (weight, bias) = normal(device, (70, 200), (70, 200), (2, 200))
    exact = F.layer_norm((x + residual).double(), (200,), weight.double(), bias.double(), 1e-5)
    return near(add_norm(x, residual, weight, bias, 1e-5), exact)


@functools.cache
def bias_gelu_agrees(device: torch.device) -> bool:
    """Whether :func:`bias_gelu_` gives torch's numbers on a device."""
    x, (bias,) = normal(device, (70, 200), (1, 200))
    exact = F.gelu((x + bias).double())
    bias_gelu_(x, bias)
    return near(x, exact)
