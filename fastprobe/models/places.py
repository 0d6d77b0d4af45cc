"""Inputs and outputs of modules inside a layer, as places where hidden states are read or replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastprobe.models.calling import first_input, first_tensor


@dataclass(frozen=True)
class Place:
    """The input or the output of a module inside a layer."""

    module: str  # path relative to the layer; "" is the layer itself
    output: bool
    copy: bool = False  # the model changes the tensor in place afterwards

    def __str__(self) -> str:
        return f"{'output' if self.output else 'input'} of {self.module or 'the layer'}"

    def hook(self, layer: nn.Module, hook: Callable[..., Any]) -> RemovableHandle:
        """Register ``hook(module, args, kwargs)`` at an input, ``hook(module, args, kwargs, result)`` at an output.

        A value that the hook returns replaces the input or the output, as in torch.
        """
        module = layer.get_submodule(self.module)
        register = module.register_forward_hook if self.output else module.register_forward_pre_hook
        return register(hook, with_kwargs=True)

    def read(self, layer: nn.Module, receive: Callable[[Tensor], object]) -> RemovableHandle:
        """Call ``receive`` with the hidden states at this place in every forward pass of a layer."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *result: Any) -> None:
            tensor = first_tensor(result[0]) if result else first_input(args, kwargs)
            receive(tensor.clone() if self.copy else tensor)

        return self.hook(layer, hook)
