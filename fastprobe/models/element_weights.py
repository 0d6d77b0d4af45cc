"""Weight matrices of an element: their modules in a layer, and random values as before training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fastprobe.errors import UnsupportedModelError
from fastprobe.models.layouts import Layout


def initial_weights(
    layer: nn.Module, layout: Layout, element: str, seed: Sequence[int], std: float = 0.02
) -> dict[str, Tensor]:
    """Draw weights of an element as before training: normal, truncated at two ``std``; biases are zero.

    Norms are not drawn. A weight that several modules share is drawn once.

    Args:
        layer: the layer that holds the element.
        layout: names of the modules in the layer.
        element: one of ``fastprobe.models.edits.EDITABLE``.
        seed: non-negative integers of any size. All their bits count.
        std: standard deviation before the truncation, which reduces it to 0.88 of that.

    Returns:
        name of each parameter in the layer -> its value, of the shape, dtype and device of the layer's.

    Raises:
        UnsupportedModelError: a weight is quantised, or Accelerate keeps it elsewhere between calls.
    """
    # A torch generator takes 32 bits of seed; SeedSequence hashes all bits into them.
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    weights: dict[str, Tensor] = {}
    drawn: dict[nn.Parameter, Tensor] = {}
    for path in linear_modules(layer, layout, element):
        for name, parameter in layer.get_submodule(path).named_parameters(recurse=False):
            if parameter.is_meta or type(parameter) is not nn.Parameter:
                kind = "offloaded" if parameter.is_meta else f"a {type(parameter).__name__}"
                raise UnsupportedModelError(
                    f"random_init: the weight {path}.{name} is {kind}, and other values would not reach it; load the "
                    "model on one device and without quantisation"
                )
            if parameter not in drawn:
                value = torch.zeros(parameter.shape)
                if parameter.ndim > 1:
                    nn.init.trunc_normal_(value, std=std, a=-2 * std, b=2 * std, generator=generator)
                drawn[parameter] = value.to(device=parameter.device, dtype=parameter.dtype)
            weights[f"{path}.{name}"] = drawn[parameter]
    return weights


def linear_modules(layer: nn.Module, layout: Layout, element: str) -> list[str]:
    """Return the paths in a layer of an element's modules that multiply by a matrix."""
    return [
        path
        for path in element_modules(layer, layout, element)
        if any(parameter.ndim > 1 for parameter in layer.get_submodule(path).parameters(recurse=False))
    ]


def element_modules(layer: nn.Module, layout: Layout, element: str) -> list[str]:
    """Return the paths in a layer of all modules of an element, without the layer itself."""
    attention = layout.attention + "."
    paths = [path for path, _ in layer.named_modules() if path]
    if element in ("attn", "attention", "attn_heads"):
        paths = [path for path in paths if path.startswith(attention)]
    elif element in ("mlp", "ffn", "mlp_act"):
        paths = [path for path in paths if not path.startswith(attention)]
    elif element == "attn_proj":
        paths = [path for path in paths if layout.attn and _within(path, layout.attn.proj)]
    parts = {"attn_heads": layout.attn, "mlp_act": layout.mlp}
    part = parts.get(element)
    without = None if part is None else part.proj
    return [path for path in paths if without is None or not _within(path, without)]


def _within(path: str, module: str) -> bool:
    """Return whether a path is a module or inside it. W_O is inside its module where a GELU follows it."""
    return path == module or path.startswith(f"{module}.")
