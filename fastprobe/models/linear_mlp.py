"""Write an affine map into the weights of an FFN, so that a model with a linear FFN is an ordinary checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastprobe.errors import InputError, UnsupportedModelError
from fastprobe.models.element_weights import linear_modules
from fastprobe.models.layouts import Layout
from fastprobe.models.plain_matrices import REMEDY, is_product
from fastprobe.models.resolve import resolve
from fastprobe.orders.arguments import integer
from fastprobe.regression.least_squares import Solution


@torch.no_grad()
def write_linear_mlp_(model: nn.Module, layer: int, solution: Solution) -> nn.Module:
    """Set the weights of a layer's FFN, in place, so that it computes the affine map ``x A + b``.

    GELU in all its forms, SiLU and ReLU are ``z s(z)`` with ``s(z) + s(-z) = 1``, so ``act(z) - act(-z) = z`` for every
    z. With the first matrix ``(I, -I, 0)`` and the second ``(A, -A, 0)`` the FFN computes the map up to the rounding of
    one product. The model keeps its class and shapes, and ``save_pretrained`` writes a checkpoint that plain
    Transformers loads.

    Args:
        model: a Hugging Face model.
        layer: number of the layer.
        solution: map ``(width, width)``, such as ``damage.maps["mlp.3"]`` of :func:`fastprobe.ablation`.

    Returns:
        the model.

    Raises:
        InputError: the model has no such layer, or the map has another width.
        UnsupportedModelError: the model has no FFN; or the FFN is gated, has no biases, is less than twice as wide as
            the model, has another activation, or shares its weights with other modules; or its modules do not multiply
            by these weights. Then no weight is changed.
    """
    first, second = check_linear_mlp(model, layer)
    up, down = _weight(first), _weight(second)
    width = up.shape[0]
    if solution.coef.shape != (width, width):
        got = tuple(solution.coef.shape)
        raise InputError(f"write_linear_mlp_: the map must be ({width}, {width}), the width of the FFN, got {got}")
    written = (first.weight, first.bias, second.weight, second.bias)
    before = [parameter.clone() for parameter in written]
    for parameter in (up, first.bias, down, second.bias):
        parameter.zero_()
    up[:, :width].fill_diagonal_(1)
    up[:, width : 2 * width].fill_diagonal_(-1)
    down[:width] = solution.coef.to(down)
    down[width : 2 * width] = -solution.coef.to(down)
    second.bias.copy_(solution.intercept)
    torch.clear_autocast_cache()  # it has casts of the old weights
    for module in (first, second):
        x = torch.randn(8, _weight(module).shape[0], generator=torch.Generator().manual_seed(0)).to(_weight(module))
        if not is_product(module, x, module.weight, module.bias):
            for parameter, value in zip(written, before, strict=True):
                parameter.copy_(value)
            raise UnsupportedModelError(
                f"{type(model).__name__}: a {type(module).__name__} of its FFN does not multiply by its own weight, so "
                f"a map written there has no effect; {REMEDY}"
            )
    return model


def check_linear_mlp(model: nn.Module, layer: int) -> tuple[Any, Any]:
    """Return the two linear modules of a layer's FFN into which :func:`write_linear_mlp_` can write a map.

    Raises:
        InputError: the model has no such layer.
        UnsupportedModelError: as for :func:`write_linear_mlp_`.
    """
    points = resolve(model)
    if not points.has_ffn:
        raise UnsupportedModelError(f"{type(model).__name__}: it has no FFN to write a map into")
    layer = integer(layer, "write_linear_mlp_")
    if not 0 <= layer < len(points.layers):
        raise InputError(f"write_linear_mlp_: there is no layer {layer}; the model has 0 to {len(points.layers) - 1}")
    first, second = _two_matrices(points.layers[layer], points.layouts[layer], type(model).__name__)
    if sharing := _sharing(model, points.layers, first, second):
        raise UnsupportedModelError(
            f"{type(model).__name__}: its {'layers share their' if sharing == LAYERS else f'{sharing} shares its'} "
            "weights with this FFN, so the FFN cannot be changed alone; give it its own weights (copy.deepcopy)"
        )
    width, hidden = _weight(first).shape
    if hidden < 2 * width:
        raise UnsupportedModelError(
            f"{type(model).__name__}: its FFN is {hidden} wide, and a map of width {width} needs {2 * width}"
        )
    return first, second


def _two_matrices(block: nn.Module, layout: Layout, name: str) -> tuple[Any, Any]:
    """Return the two linear modules of an FFN ``act(x U + u) D + d``.

    Raises:
        UnsupportedModelError: the FFN has another form.
    """
    mlp_proj = layout.mlp.proj if layout.mlp else ""
    if not mlp_proj:
        raise UnsupportedModelError(f"{name}: its layer has no FFN of two matrices to write a map into")
    paths = [path for path in linear_modules(block, layout, "mlp") if path != mlp_proj]
    for path in (*paths, mlp_proj):
        if changed := _changed(block, path):
            raise UnsupportedModelError(
                f"{name}: its FFN has {changed}, and a map can be written into plain Linear modules only; merge or "
                "remove adapters and parametrizations, or load the model without quantisation and offloading"
            )
    shapes = [_weight(block.get_submodule(path)).shape for path in paths]
    second = block.get_submodule(mlp_proj)
    hidden, width = _weight(second).shape
    if shapes in ([(width, hidden)] * 2, [(width, 2 * hidden)]):
        raise UnsupportedModelError(f"{name}: its FFN has a gate, and a product of two linear maps of x is not linear")
    if shapes != [(width, hidden)]:
        seen = ", ".join(f"{path} {tuple(shape)}" for path, shape in zip(paths, shapes, strict=True)) or "nothing"
        raise UnsupportedModelError(
            f"{name}: its FFN must be one matrix ({width}, {hidden}) before {mlp_proj}, but there is {seen}"
        )
    first = block.get_submodule(paths[0])
    if first.bias is None or second.bias is None:
        raise UnsupportedModelError(f"{name}: its FFN has no biases, which an affine map needs")
    activations = [
        module
        for path, module in block.named_modules()
        if not path.startswith(f"{layout.attention}.")
        and path != (layout.mlp.adds if layout.mlp else "")
        and not isinstance(module, nn.Dropout)
        and not [*module.parameters()]
    ]
    z = torch.linspace(-6, 6, 121).to(_weight(first))
    if len(activations) != 1 or not torch.allclose(activations[0](z) - activations[0](-z), z, atol=1e-5):
        raise UnsupportedModelError(f"{name}: the activation of its FFN does not satisfy act(z) - act(-z) = z")
    return first, second


LAYERS = "layers"
"""Name of weights that several layers share."""


def _sharing(model: nn.Module, layers: Sequence[nn.Module], first: nn.Module, second: nn.Module) -> str:
    """Return :data:`LAYERS`, or the name of another parameter or buffer, in the memory of two modules, else ``""``."""
    mine = [*first.named_parameters(prefix="first"), *second.named_parameters(prefix="second")]
    spans = [_memory(weight) for _, weight in mine]
    if any(a[0] < b[1] and b[0] < a[1] for i, a in enumerate(spans) for b in spans[:i]):
        return "another matrix of the FFN"
    slots = {(module, key) for module in (first, second) for key in module._parameters}
    for path, module in model.named_modules(remove_duplicate=False):
        for key, value in (*module._parameters.items(), *module._buffers.items()):
            if value is None or (module, key) in slots:
                continue
            start, stop = _memory(value)
            if any(start < end and begin < stop for begin, end in spans):
                in_layer = any(module is inner for block in layers for inner in block.modules())
                return LAYERS if in_layer else f"{path}.{key}"
    if sum(first in block.modules() for block in layers) > 1:
        return LAYERS
    return ""


def _memory(weight: Tensor) -> tuple[int, int]:
    """Return the first byte of a tensor and the one after its last; (0, 0) without memory of its own."""
    if type(weight) not in (Tensor, nn.Parameter) or weight.device.type == "meta" or not weight.numel():
        return 0, 0
    steps = sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
    return weight.data_ptr(), weight.data_ptr() + (steps + 1) * weight.element_size()


def _changed(block: nn.Module, path: str) -> str:
    """Return the path and the class of a module if its matrix is not its parameter ``weight`` alone, else ``""``."""
    names = path.split(".")
    for depth in range(1, len(names)):  # an adapter or a parametrization is a module around others, with a weight
        around = ".".join(names[:depth])
        if hasattr(block.get_submodule(around), "weight"):
            return f"{around}, a {type(block.get_submodule(around)).__name__}"
    module = block.get_submodule(path)
    plain = type(module) is nn.Linear or type(module).__name__ == "Conv1D"  # of GPT-2
    if not plain or not {"weight"} <= module._parameters.keys() <= {"weight", "bias"}:
        return f"{path}, a {type(module).__name__} with {', '.join(module._parameters) or 'no parameters'}"
    weight: Any = module.weight
    if weight.is_meta or type(weight) is not nn.Parameter:
        return f"{path}, whose weight is {'offloaded' if weight.is_meta else f'a {type(weight).__name__}'}"
    return "" if weight.is_floating_point() else f"{path} of {weight.dtype}"


def _weight(module: Any) -> Tensor:
    """Return a view of a module's matrix as (in, out)."""
    return module.weight.mT if isinstance(module, nn.Linear) else module.weight  # else Conv1D of GPT-2
