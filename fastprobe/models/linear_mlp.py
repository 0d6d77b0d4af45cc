"""An affine map written into the weights of an FFN, so that a model with a linear FFN is an ordinary checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.edits import linear_modules
from fastprobe.models.resolve import Layout, resolve
from fastprobe.regression.least_squares import Solution


@torch.no_grad()
def write_linear_mlp_(model: nn.Module, layer: int, solution: Solution) -> nn.Module:
    """Make the FFN of a layer the affine map ``x A + b``, in place; the model's class and shapes stay as they are.

    GELU in all its forms, SiLU and ReLU are ``z s(z)`` with ``s(z) + s(-z) = 1``, so ``act(z) - act(-z) = z`` for every
    z. With the first matrix ``(I, -I, 0)`` and the second ``(A, -A, 0)`` the FFN is the map, to the rounding of one
    product, and ``save_pretrained`` writes a checkpoint that plain Transformers loads.

    Args:
        model: a Hugging Face model.
        layer: which.
        solution: from the width of the model to itself, such as ``damage.maps["mlp.3"]`` of :func:`fastprobe.ablation`.

    Raises:
        InputError: there is no such layer, or the map has another width.
        UnsupportedModelError: the FFN is gated, is less than twice as wide as the model, has another activation, or has
            its weights in common with other layers; or there is none.
    """
    points = resolve(model)
    if not points.has_ffn:
        raise UnsupportedModelError(f"{type(model).__name__}: it has no FFN that a map could be written into")
    if not 0 <= layer < len(points.layers):
        raise InputError(f"write_linear_mlp_: there is no layer {layer}; the model has 0 to {len(points.layers) - 1}")
    first, second = _two_matrices(points.layers[layer], points.layout, type(model).__name__)
    elsewhere = [weight for at, block in enumerate(points.layers) if at != layer for weight in block.parameters()]
    if any(first.weight is weight for weight in elsewhere):
        raise UnsupportedModelError(
            f"{type(model).__name__}: its layers share their weights, so that no one can change"
        )
    up, down = _weight(first), _weight(second)
    width, hidden = up.shape
    if solution.coef.shape != (width, width):
        raise InputError(f"write_linear_mlp_: the map goes {tuple(solution.coef.shape)}, the FFN ({width}, {width})")
    if hidden < 2 * width:
        raise UnsupportedModelError(
            f"{type(model).__name__}: its FFN is {hidden} wide, and a map of width {width} needs {2 * width}"
        )
    for parameter in (up, first.bias, down, second.bias):
        parameter.zero_()
    up[:, :width].fill_diagonal_(1)
    up[:, width : 2 * width].fill_diagonal_(-1)
    down[:width] = solution.coef.to(down)
    down[width : 2 * width] = -solution.coef.to(down)
    second.bias.copy_(solution.intercept)
    return model


def _two_matrices(block: nn.Module, layout: Layout, name: str) -> tuple[Any, Any]:
    """The modules of an FFN that is ``act(x U + u) D + d``.

    Raises:
        UnsupportedModelError: it is not.
    """
    paths = [path for path in linear_modules(block, layout, "mlp") if path != layout.mlp_proj]
    first, second = block.get_submodule(paths[0]), block.get_submodule(layout.mlp_proj)
    if len(paths) != 1 or _weight(first).shape[1] != _weight(second).shape[0]:
        raise UnsupportedModelError(f"{name}: its FFN has a gate, and no product of two maps of x is a map of x")
    if first.bias is None or second.bias is None:
        raise UnsupportedModelError(f"{name}: its FFN has no biases, and an affine map needs them")
    attention = layout.attn_proj.split(".")[0]
    activations = [
        module
        for path, module in block.named_modules()
        if not path.startswith(attention)
        and path != layout.mlp_skip
        and not isinstance(module, nn.Dropout)
        and not [*module.parameters()]
    ]
    z = torch.linspace(-6, 6, 121).to(_weight(first))
    if len(activations) != 1 or not torch.allclose(activations[0](z) - activations[0](-z), z, atol=1e-5):
        raise UnsupportedModelError(f"{name}: the activation of its FFN is none for which act(z) - act(-z) is z")
    return first, second


def _weight(module: Any) -> Tensor:
    """A view of a module's matrix, (in, out)."""
    return module.weight.mT if isinstance(module, nn.Linear) else module.weight  # the others are GPT-2's Conv1D
